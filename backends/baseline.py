"""What inference_basic_sd.py does: pictures from diffusers, saved one by one, and a summary."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import schedulers
from models.source import check_model
from runtime.picture import PictureInfo, save_picture
from runtime.run import DRAWN_BITS, FALLBACK_PROMPT, SEEDS, Seconds
from utils.config import BaselineConfig
from utils.progress import say

if TYPE_CHECKING:
    from backends.diffusers import DiffusersBackend


def run(config: BaselineConfig) -> None:
    """Draw, save and report what ``config`` asks for.

    Raises:
        UserError: a checkpoint, device, sampler or folder that can't be used, NaN or Inf.
    """
    seconds = Seconds()
    if config.scheduler_label is not None:
        schedulers.resolve_label(config.scheduler_label)
    check_model(config.model)
    with seconds.measure("load"):
        from backends.diffusers import DiffusersBackend  # seconds of imports, which are part of loading

        backend = DiffusersBackend.load(config)
    prompt = backend.checkpoint.default_prompt if config.prompt is None else config.prompt
    prompt = FALLBACK_PROMPT if prompt is None else prompt
    seed = secrets.randbits(DRAWN_BITS) if config.seed is None else config.seed
    seeds = [(seed + i) % SEEDS for i in range(config.num_images)]
    say(f"seed {seeds[0]}" + (f" to {seeds[-1]}" if len(seeds) > 1 else ""))
    steps = 0
    for each in seeds:
        made = backend.generate(prompt, config.negative_prompt, each)
        seconds.text += made.text_seconds
        seconds.steps += sum(made.step_seconds)
        seconds.decode += made.decode_seconds
        steps += len(made.step_seconds)
        info = _info(config, backend, prompt, each)
        say(str(save_picture(made.picture, config.output_dir, config.output_image, info)))
    say(seconds.summary(steps))


def _info(config: BaselineConfig, backend: DiffusersBackend, prompt: str, seed: int) -> PictureInfo:
    karras = getattr(backend.sampler.settings, "use_karras_sigmas", False)
    return PictureInfo(
        prompt=prompt,
        negative_prompt=config.negative_prompt,
        steps=config.steps,
        sampler=schedulers.SAMPLER_NAMES[backend.sampler.label] + (" Karras" if karras else ""),
        guidance_scale=config.guidance_scale,
        seed=seed,
        width=backend.width,
        height=backend.height,
        model_name=backend.checkpoint.name,
        model_digest=backend.checkpoint.digest,
    )
