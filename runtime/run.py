"""What inference.py does: pictures from an artifact, saved one by one, and a summary."""

from __future__ import annotations

import contextlib
import json
import math
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import schedulers
from runtime.artifact import Artifact, Manifest
from runtime.picture import PictureInfo, save_picture, to_uint8
from runtime.pipeline import NotFinite, Pipeline, Request, Step
from runtime.recording import STEPS, Phase, Recording
from schedulers import Scheduler
from utils import units
from utils.config import RunConfig
from utils.cpu import cpu_name
from utils.errors import UserError
from utils.memory import peak_memory
from utils.progress import progress, say

FALLBACK_PROMPT = "a photo of an astronaut riding a horse on mars"
SEEDS = 2**64
DRAWN_BITS = 32  # diffusers' CPU generator reads no more of a seed


@dataclass
class Seconds:
    """Where the time of a run went."""

    load: float = 0
    text: float = 0
    steps: float = 0
    decode: float = 0
    note: Callable[[Phase], object] = lambda _phase: None  # a profiler's, to tell it of each phase

    def add(self, phase: Phase) -> None:
        """Add a phase to its part."""
        setattr(self, phase.part, getattr(self, phase.part) + phase.seconds)
        self.note(phase)

    @contextlib.contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Add the time of a ``with`` block to one part."""
        start = time.perf_counter()
        yield
        self.add(Phase(part, part, start, time.perf_counter()))

    def summary(self, steps: int) -> str:
        """Return the line that ends a run of ``steps`` steps in all."""
        peak = peak_memory()
        return (
            f"load {units.seconds(self.load)}, text {units.seconds(self.text)}, {steps} steps "
            f"{units.seconds(self.steps)} ({steps / self.steps:.2f} steps/s), decode {units.seconds(self.decode)}"
            + ("" if peak is None else f", peak memory {units.size(peak)}")
        )


def make_request(config: RunConfig, manifest: Manifest) -> Request:
    """Return what the flags ask for, with the artifact's own prompt where none was given."""
    prompt = manifest.default_prompt if config.prompt is None else config.prompt
    return Request(
        prompt=FALLBACK_PROMPT if prompt is None else prompt,
        negative_prompt=config.negative_prompt,
        steps=config.steps,
        guidance_scale=config.guidance_scale,
        scheduler_label=config.scheduler_label,
    )


def picture_info(request: Request, scheduler: Scheduler, manifest: Manifest) -> PictureInfo:
    """Return what the pictures of a request store, with seed 0 for each picture's own."""
    karras = getattr(scheduler.settings, "use_karras_sigmas", False)
    return PictureInfo(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        steps=request.steps,
        sampler=schedulers.SAMPLER_NAMES[scheduler.label] + (" Karras" if karras else ""),
        guidance_scale=request.guidance_scale,
        seed=0,
        width=manifest.width,
        height=manifest.height,
        model_name=manifest.model_name,
        model_digest=manifest.model_digest,
        extra={} if manifest.token_merging is None else {"Token merging ratio": manifest.token_merging.get("ratio")},
    )


def debug_line(step: Step, seeds: Sequence[int]) -> str:
    """Return a step as one line of JSON. What is no number (NaN, infinite) is null."""
    x_t = step.x_t
    finite = x_t[np.isfinite(x_t)]
    values = {
        "step": step.index + 1,
        "of": step.count,
        "seeds": list(seeds),
        "timestep": step.timestep,
        "sigma": step.sigma if math.isfinite(step.sigma) else None,
        "latent_min": float(finite.min()) if finite.size else None,
        "latent_max": float(finite.max()) if finite.size else None,
        "nan": int(np.isnan(x_t).sum()),
        "seconds": round(step.seconds, 6),
    }
    return json.dumps(values, allow_nan=False)


def run(config: RunConfig) -> None:
    """Draw, save and report what ``config`` asks for.

    Raises:
        UserError: an unknown sampler, an artifact that can't be used, a folder that can't be written, NaN or Inf.
    """
    seconds = Seconds()
    if config.scheduler_label is not None:
        schedulers.resolve_label(config.scheduler_label)
    with seconds.measure("load"):
        artifact = Artifact(config.artifacts_dir, config.verify)
        if config.enable_profiling and artifact.manifest.on_gpu:
            raise UserError("--enable-profiling: kernels on a GPU can't be timed by this version; leave it out")
        request = make_request(config, artifact.manifest)
        scheduler = request.scheduler(artifact.manifest)  # refuses before anything big is loaded
        pipeline = Pipeline(artifact, config.device, config.num_threads)
    seed = secrets.randbits(DRAWN_BITS) if config.seed is None else config.seed
    seeds = [(seed + i) % SEEDS for i in range(config.num_images)]
    say(f"seed {seeds[0]}" + (f" to {seeds[-1]}" if len(seeds) > 1 else ""))
    batches = [seeds[i : i + pipeline.batch_size] for i in range(0, len(seeds), pipeline.batch_size)]
    steps = len(batches) * len(scheduler.timesteps)
    saved: list[Path] = []
    with _observer(config, pipeline, seconds) as profiler:
        info = picture_info(request, scheduler, artifact.manifest)
        for _ in progress(_draw(config, pipeline, request, info, batches, seconds, saved), "steps", steps):
            pass
    say(seconds.summary(steps))
    if profiler is not None:
        say(_profile(profiler.recording(), pipeline, request, saved[0]))


@contextlib.contextmanager
def _observer(config: RunConfig, pipeline: Pipeline, seconds: Seconds) -> Iterator[Any]:
    """Give the profiler where it is asked for. With --enable-debug alone, tell where a NaN or an Inf begins."""
    if config.enable_profiling:
        from runtime.profiler import Profiler

        with Profiler(pipeline.engines) as profiler:
            seconds.note = profiler.note
            yield profiler
    elif config.enable_debug:
        from runtime.watch import Watch

        with Watch(pipeline.engines) as watch:
            try:
                yield None
            except NotFinite:
                for kind, (component, kernel) in watch.found.items():
                    say(json.dumps({"first": kind, "component": component, "kernel": kernel}))
                raise
    else:
        yield None


def _profile(recording: Recording, pipeline: Pipeline, request: Request, picture: Path) -> str:
    """Write a profile beside ``picture`` and return its tables."""
    from runtime.profile import Subject
    from runtime.profile_tables import finish

    manifest = pipeline.manifest
    subject = Subject(
        side=recording.side,
        model=manifest.model_name,
        device=cpu_name(),
        num_threads=pipeline.num_threads,
        dtype=manifest.dtype,
        height=manifest.height,
        width=manifest.width,
        guidance_scale=request.guidance_scale,
    )
    return finish(recording, subject, picture)


def _draw(
    config: RunConfig,
    pipeline: Pipeline,
    request: Request,
    info: PictureInfo,
    batches: list[list[int]],
    seconds: Seconds,
    saved: list[Path],
) -> Iterator[Step]:
    """Draw and save the pictures of each batch of seeds, and add their paths to ``saved``. Yields after each step."""
    for seeds in batches:
        with seconds.measure("text"):
            sampled = pipeline.sample(request, seeds)
        for step in sampled:
            seconds.add(Phase(STEPS, f"step {step.index + 1}", step.start, step.start + step.seconds))
            if config.enable_debug:
                say(debug_line(step, seeds))
            yield step
        with seconds.measure("decode"):
            pictures = to_uint8(pipeline.decode(step.x_t))
        for seed, pixels in zip(seeds, pictures, strict=True):
            saved.append(save_picture(pixels, config.output_dir, config.output_image, replace(info, seed=seed)))
            say(str(saved[-1]))
