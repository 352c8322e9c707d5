"""What evaluate.py and train_judge.py are asked to do: flags, validated once."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from utils.command_line import existing_parent, flag
from utils.config import SamplingConfig
from utils.errors import UserError

HERE = Path(__file__).resolve().parent


def _check_file(name: str, path: Path | None, suffix: str) -> None:
    if path is None:
        return
    if path.suffix.lower() != suffix:
        raise UserError(f"{name} {path}: the name must end in {suffix}")
    if path.is_dir() or not existing_parent(path.parent).is_dir():
        raise UserError(f"{name} {path}: it or what should hold it is no {'file' if path.is_dir() else 'folder'}")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Whose pictures are judged, how many, and where the result goes."""

    artifacts_dir: Path | None = flag(None, "folder that build.py wrote: judge the compiled model")
    model: str | None = flag(None, "checkpoint, as for build.py: judge it in diffusers")
    num_images: int = flag(240, "pictures to judge; a multiple of 24 has each thing equally often")
    steps: int = flag(20, "denoising steps, 1 to 1000")
    guidance_scale: float = flag(5.0, "classifier-free guidance; 1 or less turns it off")
    scheduler_label: str | None = flag(
        None, "ddim, pndm, euler, euler-ancestral or dpmpp-2m (default: the model's own)"
    )
    seed: int = flag(0, "seed of the first picture; picture i has the seed --seed + i, its caption depends on i alone")
    num_threads: int | None = flag(None, "CPU threads (default: the physical cores)")
    json: Path | None = flag(None, "file of the scores, .json", metavar="FILE")
    grid: Path | None = flag(None, "picture of up to 48 pictures with their captions, .png", metavar="FILE")
    inception: Path | None = flag(None, "weights of the FID's Inception network, adds the usual FID", metavar="FILE")
    clip: Path | None = flag(None, "folder of a CLIP model, adds the usual CLIP score", metavar="DIR")

    def __post_init__(self) -> None:
        if (self.artifacts_dir is None) == (self.model is None):
            raise UserError("give either --artifacts-dir DIR or --model DIR, whose pictures are to be judged")
        self.sampling()
        _check_file("--json", self.json, ".json")
        _check_file("--grid", self.grid, ".png")
        if self.inception is not None and not self.inception.is_file():
            raise UserError(f"--inception {self.inception}: no such file")
        if self.clip is not None and not self.clip.is_dir():
            raise UserError(f"--clip {self.clip}: no such folder")

    def sampling(self) -> SamplingConfig:
        """Return how to sample, as the inference scripts check it."""
        return SamplingConfig(
            num_images=self.num_images,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            seed=self.seed,
            num_threads=self.num_threads,
            output_dir=Path(tempfile.gettempdir()),  # not used, and always to be written
        )


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """What train_judge.py trains."""

    output: Path = flag(HERE / "judge.safetensors", "file of the frozen weights")
    work: Path = flag(HERE / "work" / "judge", "folder of the scenes, drawn once")
    scenes: int = flag(28_000, "training scenes to draw")
    epochs: int = flag(6, "times that each is seen, each time altered anew")
    batch_size: int = flag(64, "scenes in a step")
    learning_rate: float = flag(3e-3, "peak learning rate")
    seed: int = flag(1000, "seed of the scenes and weights; the next three are those of the scenes it is measured on")
    num_threads: int = flag(2, "CPU threads; one is faster while others use the cores")
    reference: int = flag(4096, "real scenes that the Fréchet distance is measured to")
    check: int = flag(3000, "scenes, never seen in training, to measure its accuracy on")

    def __post_init__(self) -> None:
        for name in ("scenes", "epochs", "batch_size", "num_threads", "check", "reference"):
            least = 2 if name in ("batch_size", "reference") else 1
            if getattr(self, name) < least:
                raise UserError(f"--{name.replace('_', '-')} must be {least} or more, not {getattr(self, name)}")
        if self.scenes < self.batch_size:
            raise UserError(f"--scenes {self.scenes} must be at least --batch-size {self.batch_size}")
        if not self.learning_rate > 0:
            raise UserError(f"--learning-rate must be above 0, not {self.learning_rate}")
