"""What inference_basic_sd.py does: pictures from diffusers, saved one by one, and a summary."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import schedulers
from models.source import check_model
from runtime.picture import PictureInfo, save_picture
from runtime.recording import Recording
from runtime.run import DRAWN_BITS, FALLBACK_PROMPT, SEEDS, Seconds
from utils.config import BaselineConfig
from utils.cpu import cpu_name, physical_cores
from utils.progress import say

if TYPE_CHECKING:
    from backends.diffusers import DiffusersBackend
    from backends.profiler import TorchProfiler


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
    steps, saved = 0, []
    with _profiler(config, backend, seconds) as profiler:
        for each in seeds:
            made = backend.generate(prompt, config.negative_prompt, each)
            for phase in made.phases:
                seconds.add(phase)
            steps += len(made.steps)
            info = _info(config, backend, prompt, each)
            saved.append(save_picture(made.picture, config.output_dir, config.output_image, info))
            say(str(saved[-1]))
    say(seconds.summary(steps))
    if profiler is not None:
        say(_profile(profiler.recording(), config, backend, saved[0]))


@contextlib.contextmanager
def _profiler(config: BaselineConfig, backend: DiffusersBackend, seconds: Seconds) -> Iterator[TorchProfiler | None]:
    """Give the profiler where it is asked for."""
    if not config.enable_profiling:
        yield None
        return
    from backends.profiler import TorchProfiler

    with TorchProfiler(backend) as profiler:
        seconds.note = profiler.note
        yield profiler


def _profile(recording: Recording, config: BaselineConfig, backend: DiffusersBackend, picture: Path) -> str:
    """Write a profile beside ``picture`` and return its tables."""
    from runtime.profile import Subject
    from runtime.profile_tables import finish

    subject = Subject(
        side=recording.side,
        model=backend.checkpoint.name,
        device=cpu_name(),
        num_threads=physical_cores() if config.num_threads is None else config.num_threads,
        dtype=config.dtype,
        height=backend.height,
        width=backend.width,
        guidance_scale=config.guidance_scale,
    )
    return finish(recording, subject, picture)


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
