"""A recording summed up, and its file: what each kernel reached, where the time of a step goes."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from runtime import trace
from runtime.recording import STEPS, UNET, Entry, Recording
from runtime.roofline import Peak
from utils.decoding import decode
from utils.errors import UserError
from utils.files import write_whole

SCHEMA = 1
INSTANT = 1e-9  # seconds, where the clock saw none


@dataclass(frozen=True)
class Subject:
    """What was profiled: ``side`` is the program, the picture's size in pixels, ``device`` the CPU's own name."""

    side: str
    model: str
    device: str
    num_threads: int
    dtype: str
    height: int
    width: int
    guidance_scale: float


@dataclass(frozen=True)
class Kernel:
    """All calls of one kernel. None is what is not known.

    ``share`` is of all components' seconds; ``flops`` and ``bytes`` are those of all calls (see ``compiler.costs``),
    ``intensity`` their quotient. ``bound`` is the lower of both roofs at that intensity, "compute" or "memory", and
    ``of_roof`` the seconds that it would take there to those it took. ``origin`` is None for what is no kernel:
    allocation, views.
    """

    component: str
    kernel: str
    origin: str | None
    calls: int
    seconds: float
    share: float
    flops: int | None
    bytes: int | None
    flops_per_second: float | None
    bytes_per_second: float | None
    intensity: float | None
    bound: str | None
    of_roof: float | None


@dataclass(frozen=True)
class Component:
    """All calls of a component: seconds, and those of them inside of kernels."""

    component: str
    calls: int
    seconds: float
    share: float
    kernel_seconds: float
    flops: int


@dataclass(frozen=True)
class AverageStep:
    """Where the time of an average step goes.

    ``kernel_seconds`` are spent in the UNet's kernels, ``host_seconds`` in its call but outside of them,
    ``other_seconds`` outside of its call: guidance and sampler. ``utilisation`` is the part of the peak's FLOPs that
    the step's are.
    """

    steps: int
    seconds: float
    kernel_seconds: float
    host_seconds: float
    other_seconds: float
    flops: int
    utilisation: float


@dataclass(frozen=True)
class Profile:
    """All of a profile's JSON. ``phases``: seconds of text, steps and decode."""

    schema: int
    subject: Subject
    peak: Peak
    phases: dict[str, float]
    step: AverageStep
    components: list[Component]
    kernels: list[Kernel]


def summarise(recording: Recording, subject: Subject, peak: Peak) -> Profile:
    """Sum ``recording`` up; kernels and components by their seconds, the largest first."""
    total = sum(call.seconds for call in recording.calls) or 1.0
    kernels = [_kernel(*key, entry, total, peak) for key, entry in recording.entries.items()]
    phases: dict[str, float] = {}
    for phase in recording.phases:
        phases[phase.part] = phases.get(phase.part, 0.0) + phase.seconds
    return Profile(
        SCHEMA,
        subject,
        peak,
        phases,
        _average_step(recording, peak),
        [_component(recording, name, total) for name in recording.components],
        sorted(kernels, key=lambda kernel: -kernel.seconds),
    )


def _kernel(component: str, name: str, entry: Entry, total: float, peak: Peak) -> Kernel:
    flops, moved, seconds = entry.flops, entry.bytes, entry.seconds or INSTANT
    intensity = bound = of_roof = None
    if flops is not None and moved:
        intensity = flops / moved
        bound = "compute" if intensity >= peak.ridge else "memory"
        of_roof = max(flops / peak.flops_per_second, moved / peak.bytes_per_second) / seconds
    return Kernel(
        component=component,
        kernel=name,
        origin=entry.origin,
        calls=entry.calls,
        seconds=entry.seconds,
        share=entry.seconds / total,
        flops=flops,
        bytes=moved,
        flops_per_second=None if flops is None else flops / seconds,
        bytes_per_second=None if moved is None else moved / seconds,
        intensity=intensity,
        bound=bound,
        of_roof=of_roof,
    )


def _component(recording: Recording, name: str, total: float) -> Component:
    calls = [call for call in recording.calls if call.component == name]
    seconds = sum(call.seconds for call in calls)
    kernel_seconds, flops = sum(call.kernel_seconds for call in calls), sum(call.flops for call in calls)
    return Component(name, len(calls), seconds, seconds / total, kernel_seconds, flops)


def _average_step(recording: Recording, peak: Peak) -> AverageStep:
    steps = [phase for phase in recording.phases if phase.part == STEPS]
    unet = [call for call in recording.calls if call.component == UNET]
    calls = [call for phase in steps for call in trace.within(unet, phase)]
    count = len(steps) or 1
    seconds = sum(phase.seconds for phase in steps) / count
    called = sum(call.seconds for call in calls) / count
    kernels = sum(call.kernel_seconds for call in calls) / count
    flops = sum(call.flops for call in calls) // count
    utilisation = flops / (seconds or INSTANT) / peak.flops_per_second
    return AverageStep(len(steps), seconds, kernels, called - kernels, seconds - called, flops, utilisation)


def save(profile: Profile, recording: Recording, picture: Path) -> list[Path]:
    """Write ``NAME.profile.json`` and ``NAME.trace.json`` beside ``NAME.png`` and return their paths.

    Raises:
        UserError: the folder can't be written, or the disk is full.
    """
    written = picture.with_suffix(".profile.json"), picture.with_suffix(".trace.json")
    try:
        text = json.dumps(dataclasses.asdict(profile), indent=1, ensure_ascii=False, allow_nan=False)
        write_whole(written[0], text + "\n")
        trace.write_trace(trace.events(recording), written[1], recording.left_out)
    except OSError as error:
        raise UserError(f"--output-dir {picture.parent}: the profile can't be written ({error.strerror})") from None
    return list(written)


def read_profile(path: Path) -> Profile:
    """Read what ``save`` wrote.

    Raises:
        UserError: the file can't be read, or is no profile of this schema.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} can't be read ({error})") from None
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise UserError(f"{path} is no profile of schema {SCHEMA}; make it again with --enable-profiling")
    return decode(Profile, value, f"{path}: profile", "make it again with --enable-profiling")
