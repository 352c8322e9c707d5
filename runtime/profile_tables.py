"""Profiles as tables: of one run, and of several side by side."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from runtime.profile import INSTANT, AverageStep, Profile, Subject, read_profile, save, summarise
from runtime.recording import UNET, Recording
from runtime.roofline import Peak, measure_apart
from utils import units

ROWS = 20  # kernels of a report
TOP = 10  # kernels of a comparison
NAME = 44  # characters of a kernel's name


def finish(recording: Recording, subject: Subject, picture: Path) -> str:
    """Measure this machine's peak, write the profile and the trace beside ``picture``, and return tables and paths.

    Raises:
        UserError: see ``save`` and ``measure_apart``.
    """
    profile = summarise(recording, subject, measure_apart(subject.num_threads))
    return "\n".join([report(profile), *map(str, save(profile, recording, picture))])


def report(profile: Profile) -> str:
    """Return the tables: each component and the kernels that took most of the time, then the average step."""
    columns = f"{'calls':>7} {'time':>9} {'share':>6} {'GFLOP/s':>8} {'GB/s':>7} {'FLOP/B':>7} {'of roof':>15}"
    lines = [f"{'component':14} {'kernel':{NAME}} {columns}"]
    for each in profile.components:
        lines.append(_row(each.component, "(all)", each.calls, each.seconds, each.share, each.flops / each.seconds))
    for k in profile.kernels[:ROWS]:
        cells = _row(k.component, k.kernel, k.calls, k.seconds, k.share, k.flops_per_second)
        roof = "" if k.of_roof is None else f"{k.of_roof:7.1%} {k.bound}"
        lines.append(f"{cells} {_number(k.bytes_per_second, 1e9)} {_number(k.intensity, 1)} {roof:>15}".rstrip())
    return "\n".join([*lines, "", _peak(profile.peak), "", *_step_table(profile.step)])


def _row(component: str, kernel: str, calls: int, seconds: float, share: float, rate: float | None) -> str:
    cells = f"{component:14} {kernel[:NAME]:{NAME}} {calls:7d} {units.seconds(seconds):>9} {share:6.1%}"
    return f"{cells} {_number(rate, 1e9):>8}"


def _number(value: float | None, unit: float) -> str:
    return f"{'-' if value is None else format(value / unit, '.1f'):>7}"


def _peak(peak: Peak) -> str:
    rates = f"{peak.flops_per_second / 1e9:.0f} GFLOP/s and {peak.bytes_per_second / 1e9:.1f} GB/s"
    return f"roofs of {peak.num_threads} threads: {rates} ({peak.how})"


def _step_table(step: AverageStep) -> list[str]:
    """Return the average step as rows of seconds and shares."""
    parts = (("kernels", step.kernel_seconds), ("host", step.host_seconds), ("other", step.other_seconds))
    lines = [f"{'average step':14} {'time':>11} {'share':>6}"]
    for name, seconds in (*parts, ("all", step.seconds)):
        lines.append(f"{name:14} {seconds * 1e3:8.2f} ms {seconds / (step.seconds or INSTANT):6.1%}")
    rate = step.flops / (step.seconds or INSTANT) / 1e9
    return [*lines, f"utilisation    {rate:.1f} GFLOP/s, {step.utilisation:.1%} of the roof"]


def side_by_side(paths: Sequence[Path]) -> str:
    """Return the tables of several profiles as one: average steps, and the ten kernels that took most of each.

    Raises:
        UserError: see ``read_profile``.
    """
    profiles = [read_profile(path) for path in paths]
    columns = [[each.subject.side, "", *_step_table(each.step), "", *_top(each)] for each in profiles]
    rows = itertools.zip_longest(*columns, fillvalue="")
    return "\n".join(" | ".join(f"{cell:{NAME + 27}}" for cell in row).rstrip() for row in rows)


def _top(profile: Profile) -> list[str]:
    """Return the UNet's kernels: name, milliseconds a step, share of the step, GFLOP/s.

    What is done once a picture (keys and values of cross-attention) is shared out to its steps.
    """
    kernels = [kernel for kernel in profile.kernels if kernel.component == UNET and kernel.origin is not None][:TOP]
    lines = [f"{'kernel':{NAME}} {'ms/step':>8} {'share':>7} {'GFLOP/s':>8}"]
    for k in kernels:
        seconds = k.seconds / (profile.step.steps or 1)
        share = seconds / (profile.step.seconds or INSTANT)
        lines.append(
            f"{k.kernel[:NAME]:{NAME}} {seconds * 1e3:8.2f} {share:7.1%} {_number(k.flops_per_second, 1e9):>8}"
        )
    return lines
