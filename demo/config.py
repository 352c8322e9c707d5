"""What train.py trains: flags, validated once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from utils.command_line import flag
from utils.errors import UserError, choose

HERE = Path(__file__).resolve().parent
STAGES = ("all", "autoencoder", "diffusion")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The stages, their budgets and the folders."""

    stage: str = flag("all", "all, autoencoder or diffusion")
    output: Path = flag(HERE / "checkpoint", "folder of the finished checkpoint")
    work: Path = flag(HERE / "work", "folder of scenes, latents, training state, sample grids and loss curves")
    autoencoder_minutes: float = flag(30.0, "minutes of the autoencoder's training, those before --resume included")
    minutes: float = flag(55.0, "minutes of the diffusion training, those before --resume included")
    steps: int | None = flag(None, "steps of each stage, instead of minutes")
    scenes: int = flag(40_000, "training scenes to draw")
    batch_size: int = flag(48, "scenes in a step of the diffusion training; the autoencoder takes a quarter")
    learning_rate: float = flag(6e-4, "peak learning rate of the diffusion training; the autoencoder takes twice that")
    seed: int = flag(0, "seed of the scenes, the weights and the noise")
    workers: int | None = flag(None, "threads that share a batch (default: the CPU's cores)")
    resume: bool = flag(False, "go on from --work, or, where its state is gone, from the weights in --output")

    def __post_init__(self) -> None:
        choose("--stage", self.stage, STAGES)
        for name in ("autoencoder_minutes", "minutes", "learning_rate"):
            if not getattr(self, name) > 0:
                raise UserError(f"--{name.replace('_', '-')} must be above 0, not {getattr(self, name)}")
        if self.steps is not None and self.steps < 1:
            raise UserError(f"--steps must be 1 or more, not {self.steps}")
        if self.batch_size < 4 or self.scenes < 4 * self.batch_size:
            raise UserError(f"--batch-size must be 4 or more, and --scenes {self.scenes} at least 4 times as many")

        if self.workers is not None and not 1 <= self.workers <= self.batch_size:
            raise UserError(f"--workers must be from 1 to --batch-size {self.batch_size}, not {self.workers}")

    def worker_count(self) -> int:
        """Return the number of threads, at most one for each scene of the smaller batch."""
        wanted = self.workers if self.workers is not None else os.cpu_count() or 1
        return min(wanted, self.batch_size // 4)
