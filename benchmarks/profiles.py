"""--enable-profiling: where the time of a picture goes, as both scripts' own profiles tell it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from backends.command import run_python
from backends.peer import GUIDANCE_SCALE, PICTURE, PROMPT, SEED, Settings
from benchmarks.results import OURS
from benchmarks.schema import ProfileRow
from benchmarks.session import Session
from runtime.profile import Profile, read_profile
from runtime.trace import merge_traces
from utils.errors import UserError
from utils.progress import say

EAGER = "eager"
TOLD = 0.99  # of the time is that of the kernels that the results name
TRACES = "traces"  # folder beside the results


def profiles(session: Session, base: Path) -> Iterator[ProfileRow]:
    """Draw a picture with each script, profiled, and put the traces of both as one file beside the results.

    Raises:
        UserError: the model can't be loaded, or can't make this size.
    """
    session.make_references([PICTURE])
    session.convert([OURS], [PICTURE], session.settings.dtype)
    settings, traces = session.settings, []
    for name, script in _scripts(settings).items():
        say(f"{name}: a picture with --enable-profiling")
        folder = settings.output_folder(PICTURE, name) / "profile"
        reason = session.refused.get((name, settings.dtype))
        try:
            if reason is not None:
                raise UserError(reason)
            run_python([*script, "--enable-profiling"], _flags(settings, folder))
            profile = read_profile(folder / "picture.profile.json")
        except UserError as error:
            yield ProfileRow(name, _size(settings), str(error))
            continue
        traces.append(folder / "picture.trace.json")
        yield ProfileRow(name, _size(settings), profile=_heaviest(profile))
    if traces:
        (base / TRACES).mkdir(exist_ok=True)
        merge_traces(traces, base / TRACES / f"{_size(settings)}.json")


def _size(settings: Settings) -> str:
    return f"{settings.width}x{settings.height}"


def _scripts(settings: Settings) -> dict[str, list[object]]:
    """Return the command of each side, with what the other one has no flag for."""
    size: list[object] = ["--height", settings.height, "--width", settings.width]
    model: list[object] = ["--model", settings.model, "--dtype", settings.dtype, *size]
    return {
        EAGER: ["inference_basic_sd.py", "--device", "cpu", *model],
        OURS: ["inference.py", "--artifacts-dir", settings.artifact],
    }


def _flags(settings: Settings, folder: Path) -> dict[str, object]:
    flags = {
        "--prompt": PROMPT,
        "--seed": SEED,
        "--steps": settings.steps,
        "--guidance-scale": GUIDANCE_SCALE,
        "--num-threads": settings.num_threads,
        "--output-dir": folder,
        "--output-image": "picture.png",
    }
    sampler = {} if settings.scheduler_label is None else {"--scheduler-label": settings.scheduler_label}
    return {**flags, **sampler}


def _heaviest(profile: Profile) -> Profile:
    """Leave the many kernels out that have next to no time."""
    kept, share, whole = [], 0.0, sum(kernel.share for kernel in profile.kernels)
    for kernel in profile.kernels:
        if share < TOLD * whole:
            kept.append(kernel)
            share += kernel.share
    return replace(profile, kernels=kept)
