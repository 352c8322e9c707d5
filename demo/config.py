"""What train.py trains: flags, validated once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.command_line import existing_parent, flag
from utils.errors import UserError, choose

HERE = Path(__file__).resolve().parent
STAGES = ("all", "autoencoder", "diffusion")
MAX_SIDE = 2048  # pixels
# Flags whose default differs where a checkpoint is fine-tuned.
TRAINING: dict[str, Any] = {"minutes": 55.0, "batch_size": 48, "learning_rate": 6e-4}
FINETUNING: dict[str, Any] = {"minutes": 20.0, "batch_size": 16, "learning_rate": 1e-4}


def _defaults(name: str) -> str:
    return f"(default: {TRAINING[name]}, or {FINETUNING[name]} with --finetune-from)"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The stages or the fine-tuning, their budgets and the folders."""

    stage: str = flag("all", "all, autoencoder or diffusion")
    finetune_from: Path | None = flag(
        None, "checkpoint in the diffusers layout to go on training on --images; its autoencoder stays as it is"
    )
    images: Path | None = flag(
        None,
        "folder of pictures to fine-tune on; their captions are in NAME.txt beside each NAME.png, or in metadata.jsonl "
        "with file_name and text",
    )
    resolution: int | None = flag(
        None, "side that --images are scaled and cropped to, a multiple of 8 (default: the checkpoint's own)"
    )
    output: Path = flag(
        None, "folder of the finished checkpoint (default: demo/checkpoint, or finetuning/checkpoint in --work)"
    )
    work: Path = flag(
        HERE / "work",
        "folder of scenes, latents, training state, sample grids and loss curves; those of --finetune-from are in "
        "finetuning/ in it",
    )
    autoencoder_minutes: float = flag(30.0, "minutes of the autoencoder's training, those before --resume included")
    minutes: float = flag(
        None, f"minutes of the diffusion training, those before --resume included {_defaults('minutes')}"
    )
    steps: int | None = flag(None, "steps of each stage, instead of minutes")
    scenes: int = flag(40_000, "training scenes to draw")
    batch_size: int = flag(
        None,
        f"pictures in a step of the diffusion training; the autoencoder takes a quarter {_defaults('batch_size')}",
    )
    learning_rate: float = flag(
        None,
        "peak learning rate of the diffusion training; the autoencoder takes twice that; 1e-5 suits a checkpoint of "
        f"Stable Diffusion's size {_defaults('learning_rate')}",
    )
    checkpoint_minutes: float = flag(4.0, "minutes between two savings of the training state")
    seed: int = flag(0, "seed of the scenes, the weights and the noise")
    workers: int | None = flag(None, "processes that share a batch (default: the CPU's cores)")
    compile: bool = flag(False, "compile the networks first: a minute or two, then a step takes a quarter less time")
    resume: bool = flag(
        False,
        "go on from --work, or, where its state is gone, from the weights in --output; a fine-tuning begins anew then",
    )

    def __post_init__(self) -> None:
        for name, value in (TRAINING if self.finetune_from is None else FINETUNING).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.output is None:
            output = HERE if self.finetune_from is None else self.finetuning
            object.__setattr__(self, "output", output / "checkpoint")
        choose("--stage", self.stage, STAGES)
        for name in ("autoencoder_minutes", "minutes", "learning_rate", "checkpoint_minutes"):
            if not getattr(self, name) > 0:
                raise UserError(f"--{name.replace('_', '-')} must be above 0, not {getattr(self, name)}")
        if self.steps is not None and self.steps < 1:
            raise UserError(f"--steps must be 1 or more, not {self.steps}")
        if self.finetune_from is None:
            self._check_stages()
        else:
            self._check_finetuning(self.finetune_from)
        if self.workers is not None and not 1 <= self.workers <= self.batch_size:
            raise UserError(f"--workers must be from 1 to --batch-size {self.batch_size}, not {self.workers}")

    def _check_stages(self) -> None:
        for name, value in (("--images", self.images), ("--resolution", self.resolution)):
            if value is not None:
                raise UserError(f"{name} is for --finetune-from, which names the checkpoint to begin with")
        if self.batch_size < 4 or self.scenes < 4 * self.batch_size:
            raise UserError(f"--batch-size must be 4 or more, and --scenes {self.scenes} at least 4 times as many")

    def _check_finetuning(self, start: Path) -> None:
        if self.images is None:
            raise UserError("--images is missing; name the folder of pictures and captions to fine-tune on")
        if self.stage != "all":
            raise UserError(f"--stage {self.stage} and --finetune-from exclude each other; leave one out")
        if self.batch_size < 1:
            raise UserError(f"--batch-size must be 1 or more, not {self.batch_size}")
        if self.resolution is not None and (self.resolution % 8 or not 8 <= self.resolution <= MAX_SIDE):
            raise UserError(f"--resolution must be a multiple of 8 from 8 to {MAX_SIDE}, not {self.resolution}")
        for name, folder in (("--finetune-from", start), ("--images", self.images)):
            if not folder.is_dir():
                raise UserError(f"{name} {folder}: no such folder")
        if self.output.resolve() == start.resolve():
            raise UserError(f"--output {self.output} is the checkpoint to begin with; name another folder")
        for name, folder in (("--work", self.work), ("--output", self.output)):
            parent = existing_parent(folder)
            if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
                raise UserError(f"{name} {folder}: {parent} is no folder that can be written to")
        if self.output.is_dir() and any(self.output.iterdir()) and not (self.output / "model_index.json").is_file():
            raise UserError(f"--output {self.output} is not empty and no checkpoint; name another folder")

    @property
    def finetuning(self) -> Path:
        """Folder of a fine-tuning's state, samples and loss curve."""
        return self.work / "finetuning"

    def worker_count(self) -> int:
        """Return the number of processes, at most one for each picture of the smallest batch."""
        wanted = self.workers if self.workers is not None else os.cpu_count() or 1
        return min(wanted, self.batch_size // 4 if self.finetune_from is None else self.batch_size)
