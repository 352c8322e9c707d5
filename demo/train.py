"""Train the demo checkpoint from nothing: scenes, the autoencoder, cached latents, then UNet and text encoder."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from demo.architecture import Architecture
from demo.autoencoder import encode, train_autoencoder
from demo.checkpoint import Parts, export, load
from demo.dataset import make_scene, vocabulary
from demo.diffusion import Captioned, tokenise, train_diffusion
from demo.pictures import MIX, held_out, scenes
from demo.tokenizer import write_tokenizer
from demo.training import Budget
from utils.command_line import flag, parse
from utils.errors import UserError, choose, run_script

HERE = Path(__file__).resolve().parent
STAGES = ("all", "autoencoder", "diffusion")
UNSEEN_SEED = 1  # of the scenes that the autoencoder is judged on
EXAMPLES = """
  python demo/train.py --stage all --autoencoder-minutes 20 --minutes 60
  python demo/train.py --stage diffusion --minutes 150 --resume
"""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What train.py trains."""

    stage: str = flag("all", "all, autoencoder or diffusion")
    output: Path = flag(HERE / "checkpoint", "folder of the finished checkpoint")
    work: Path = flag(HERE / "work", "folder of scenes, latents, training state, sample grids and loss curves")
    autoencoder_minutes: float = flag(20.0, "minutes of the autoencoder's training, those before --resume included")
    minutes: float = flag(60.0, "minutes of the diffusion training, those before --resume included")
    steps: int | None = flag(None, "steps of each stage, instead of minutes")
    scenes: int = flag(28_000, "training scenes to draw")
    batch_size: int = flag(32, "scenes in a step of the diffusion training; the autoencoder takes a quarter")
    learning_rate: float = flag(5e-4, "peak learning rate of the diffusion training; the autoencoder takes twice that")
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


def train(config: TrainConfig, architecture: Architecture) -> None:
    """Run the stages that the configuration names and export the checkpoint after the last."""
    pixels = scenes(config.work / "scenes.npy", config.scenes, architecture.size, config.seed)
    torch.manual_seed(config.seed)
    if config.stage != "diffusion":
        _autoencoder_stage(config, architecture, pixels)
    if config.stage != "autoencoder":
        _diffusion_stage(config, architecture, pixels)


def _autoencoder_stage(config: TrainConfig, architecture: Architecture, pixels: np.ndarray) -> None:
    vae = architecture.autoencoder()
    started = config.resume and not (config.work / "autoencoder.safetensors").exists()
    if started and (config.output / "vae").is_dir():
        vae = load(config.output)[0]
    train_autoencoder(
        vae,
        pixels,
        held_out(64, architecture.size, UNSEEN_SEED),
        config.work,
        Budget(config.autoencoder_minutes, config.steps),
        batch=config.batch_size // 4,
        rate=2 * config.learning_rate,
        seed=config.seed,
        resume=config.resume,
        workers=config.worker_count(),
    )
    (config.work / "latents.safetensors").unlink(missing_ok=True)
    vae.save_pretrained(config.work / "vae")


def _latents(config: TrainConfig, vae: AutoencoderKL, pixels: np.ndarray) -> torch.Tensor:
    """Return scaled latents, float16 [N,4,h,w], and put the factor that gives them a deviation of 1 into ``vae``."""
    path = config.work / "latents.safetensors"
    wanted = {"scenes": str(len(pixels)), "seed": str(config.seed)}
    if path.exists():
        with safe_open(path, "pt") as file:
            found = file.metadata()
            if {key: found[key] for key in wanted} == wanted:
                vae.register_to_config(scaling_factor=json.loads(found["factor"]))
                return file.get_tensor("latents")
    latents = encode(vae, pixels, config.worker_count())
    factor = 1 / latents.std().item()
    latents = (latents * factor).half().contiguous()
    temporary = path.with_suffix(".partial")
    save_file({"latents": latents}, temporary, {**wanted, "factor": json.dumps(factor)})
    os.replace(temporary, path)
    vae.register_to_config(scaling_factor=factor)
    return latents


def _start(config: TrainConfig, architecture: Architecture) -> Parts:
    """Return the networks that the diffusion training starts from: fresh ones, or the exported ones on --resume."""
    resumable = (config.work / "diffusion.safetensors").exists()
    if config.resume and not resumable and (config.output / "unet").is_dir():
        return load(config.output)
    folder = config.work / "vae"
    if not folder.is_dir():
        folder = config.output / "vae"
    if not folder.is_dir():
        raise UserError(f"{config.work}: no autoencoder to build on; run --stage autoencoder first")
    write_tokenizer(vocabulary(), config.work / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(config.work / "tokenizer")
    vae = AutoencoderKL.from_pretrained(folder, use_safetensors=True, torch_dtype=torch.float32)
    return vae, architecture.text_encoder(len(tokenizer)), architecture.denoiser(), tokenizer


def _diffusion_stage(config: TrainConfig, architecture: Architecture, pixels: np.ndarray) -> None:
    parts = _start(config, architecture)
    latents = _latents(config, parts[0], pixels)
    drawn = [make_scene(index, config.seed, **MIX) for index in range(len(pixels))]  # type: ignore[arg-type]
    ids = tokenise(parts[3], [scene.caption for scene in drawn]).short()
    data = Captioned(latents, ids, np.array([len(scene.things) == 2 for scene in drawn]))
    train_diffusion(
        parts,
        data,
        config.work,
        Budget(config.minutes, config.steps),
        batch=config.batch_size,
        rate=config.learning_rate,
        seed=config.seed,
        resume=config.resume,
        workers=config.worker_count(),
        keep=lambda: export(parts, config.work / "preliminary"),
    )
    export(parts, config.output)


def main(argv: list[str]) -> None:
    """Parse the flags and train."""
    train(parse(TrainConfig, argv, __doc__ or "", EXAMPLES), Architecture())


if __name__ == "__main__":
    run_script(main)
