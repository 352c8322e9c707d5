"""Fine-tuning: a checkpoint goes on learning from a user's own pictures and captions."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

from demo.autoencoder import encode
from demo.checkpoint import Parts, export
from demo.config import TrainConfig
from demo.diffusion import Captioned, ddim, tokenise, train_diffusion
from demo.imagefolder import read_images
from demo.training import Budget, State
from models.assembly import quiet
from models.checkpoint import Checkpoint, load_folder
from schedulers.settings import Settings
from utils.errors import UserError
from utils.progress import say

SAMPLES = 8  # captions of the grid
PIXELS = 16 * 128 * 128  # that the autoencoder takes at once


def finetune(config: TrainConfig) -> State:
    """Train the UNet and the text encoder of ``config.finetune_from`` on ``config.images``, and write the checkpoint.

    Noise levels, what is predicted, tokenizer and scaling of the latents are the checkpoint's own. Everything that the
    user gave is checked before the first step. The result is in ``config.output`` from the first saving on, the mean
    weights in half precision.

    Raises:
        UserError: no checkpoint, no picture that can be used, a size that the checkpoint can't make, a full disk, or a
            loss that is no number any more.
    """
    assert config.finetune_from is not None and config.images is not None  # noqa: S101, TrainConfig sees to it
    base = _load(config.finetune_from)
    side = min(base.height, base.width) if config.resolution is None else config.resolution
    if side % base.latent_scale:
        raise UserError(f"--resolution must be a multiple of {base.latent_scale} for this checkpoint, not {side}")
    pixels, captions = read_images(config.images, side)
    parts = _trainable(base, side)
    data = _captioned(parts, pixels, captions, config.worker_count())
    say(f"fine-tuning on {len(captions)} pictures of {side}x{side}; state and samples in {config.finetuning}")
    scheduler = base.pipeline().scheduler
    state = train_diffusion(
        parts,
        data,
        config.finetuning,
        Budget(config.minutes, config.steps),
        batch=config.batch_size,
        rate=config.learning_rate,
        seed=config.seed,
        resume=config.resume,
        workers=config.worker_count(),
        every_minutes=config.checkpoint_minutes,
        compiled=config.compile,
        keep=lambda: _export(parts, config.output, captions[0], scheduler),
        scheduler=ddim(base.scheduler_config),
        prompts=_spread(captions),
        origin=_origin(base, pixels, captions),
    )
    say(f"wrote {config.output}; compile it with: python build.py --model {config.output}")
    return state


def _load(folder: Path) -> Checkpoint:
    try:
        base = load_folder(folder, folder.name)
        Settings.from_config(base.scheduler_config)
    except UserError as error:
        raise UserError(str(error).replace("--model", "--finetune-from")) from None
    return base


def _trainable(base: Checkpoint, side: int) -> Parts:
    """Return the networks, those that are to learn with weights of their own: loaded ones may be a map of the file."""
    for module in (base.text_encoder, base.unet):
        for parameter in module.parameters():
            parameter.data = parameter.data.clone()
            parameter.requires_grad_(True)
    base.unet.register_to_config(sample_size=side // base.latent_scale)
    return base.vae, base.text_encoder, base.unet, base.tokenizer


def _captioned(parts: Parts, pixels: np.ndarray, captions: list[str], workers: int) -> Captioned:
    vae, _, _, tokenizer = parts
    batch = max(1, PIXELS // pixels[0, ..., 0].size)
    latents = encode(vae, pixels, workers, batch) * vae.config.scaling_factor
    with quiet():
        lengths = [len(ids) for ids in tokenizer(captions).input_ids]
    cut = sum(length > tokenizer.model_max_length for length in lengths)
    if cut:
        print(f"{cut} captions are longer than {tokenizer.model_max_length} tokens and are cut", file=sys.stderr)
    return Captioned(latents.half(), tokenise(tokenizer, captions).int())


def _export(parts: Parts, output: Path, prompt: str, scheduler: object) -> None:
    with quiet():
        export(parts, output, prompt, scheduler)


def _spread(captions: list[str]) -> list[str]:
    """Return at most ``SAMPLES`` different captions, evenly spread."""
    different = list(dict.fromkeys(captions))
    places = np.linspace(0, len(different) - 1, min(SAMPLES, len(different)))
    return [different[round(place)] for place in places]


def _origin(base: Checkpoint, pixels: np.ndarray, captions: list[str]) -> str:
    """Return a hexadecimal SHA-256 over the checkpoint, the pictures and the captions."""
    digest = hashlib.sha256(f"{base.digest} {pixels.shape} {json.dumps(captions)}".encode())
    digest.update(pixels.tobytes())
    return digest.hexdigest()
