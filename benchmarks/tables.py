"""The figures of a run as text, a table a section."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.results import decibels
from benchmarks.schema import (
    AttentionRow,
    Backend,
    Latency,
    ProfileRow,
    Results,
    Rung,
    Throughput,
    TomeRow,
    WinogradRow,
)
from utils import units

Row = Sequence[str]


def tables(results: Results) -> str:
    """Return a table for each section that has rows, under the name of the CPU."""
    place = results.environment
    parts = [f"{place.cpu}, {place.threads} threads; ratio: our seconds / theirs"]
    for section, (heads, cells) in SECTIONS.items():
        if rows := getattr(results, section):
            parts.append(f"{section}\n{_aligned(heads, [cells(row) for row in rows])}")
    return "\n\n".join(parts)


def _aligned(heads: Row, rows: Sequence[Row]) -> str:
    """Align columns: the first to the left, figures to the right. A short row ends in a sentence."""
    whole = [row for row in [heads, *rows] if len(row) == len(heads)]
    widths = [max(len(row[i]) for row in whole) for i in range(len(heads))]

    def line(row: Row) -> str:
        if len(row) < len(heads):
            return f"{row[0]:{widths[0]}}  {'  '.join(row[1:])}"
        return "  ".join(
            [f"{row[0]:{widths[0]}}", *(f"{cell:>{w}}" for cell, w in zip(row[1:], widths[1:], strict=True))]
        )

    return "\n".join(line(row).rstrip() for row in [heads, *rows])


def _median(values: Sequence[float]) -> str:
    return units.seconds(statistics.median(values))


def _number(value: float | None, form: str = ".3f") -> str:
    return "" if value is None else f"{value:{form}}"


def _backend(row: Backend) -> Row:
    name = f"{row.name} {row.resolution}"
    if row.skipped is not None:
        return name, f"skipped: {row.skipped}"
    low, high = row.ratio_interval or (None, None)
    return (
        name,
        *(_median(values) for values in (row.text_seconds, row.unet_seconds, row.vae_seconds, row.total_seconds)),
        _number(row.iterations_per_second, ".2f"),
        _number(row.ratio),
        "" if low is None else f"{low:.3f}-{high:.3f}",
        "" if row.first_picture_seconds is None else units.seconds(row.first_picture_seconds),
        "" if row.peak_memory is None else units.size(row.peak_memory),
        "" if row.size is None else units.size(row.size),
        decibels(row.psnr),
    )


def _rung(row: Rung) -> Row:
    if row.skipped is not None:
        return row.name, f"skipped: {row.skipped}"
    sizes = (units.size(value or 0) for value in (row.parameters, row.workspace))
    return (
        row.name,
        _median(row.unet_seconds),
        _number(row.step_ratio),
        _number(row.ratio),
        *sizes,
        decibels(row.psnr),
    )


def _attention(row: AttentionRow) -> Row:
    rate = f"{row.gflops:.0f}"
    return row.layer, str(row.calls), row.method, _median(row.seconds), rate, units.size(row.memory), decibels(row.psnr)


def _winograd(row: WinogradRow) -> Row:
    gflop, memory = f"{row.gflop:.2f}", units.size(row.memory)
    return row.layer, str(row.calls), row.method, _median(row.seconds), gflop, memory, decibels(row.psnr)


def _throughput(row: Throughput) -> Row:
    low, high = (units.seconds(bound) for bound in row.interval)
    start, step = units.seconds(max(0.0, row.start_seconds)), units.seconds(row.step_seconds)
    return f"{row.name} {row.resolution}", start, step, f"{low} to {high}", f"{row.r2:.4f}"


def _latency(row: Latency) -> Row:
    shares = (units.seconds(value) for value in (row.p50, row.p90, row.p99))
    return f"{row.name} {row.resolution}", str(len(row.seconds)), *shares


def _tome(row: TomeRow) -> Row:
    return (
        f"{row.name} {row.attention} {row.resolution}",
        f"{row.ratio:g}",
        _median(row.unet_seconds),
        _number(row.unet_ratio),
        _median(row.total_seconds),
        decibels(row.psnr_to_plain),
        _number(row.accuracy),
        _number(row.frechet),
    )


def _profile(row: ProfileRow) -> Row:
    name = f"{row.name} {row.resolution}"
    if row.profile is None:
        return name, f"skipped: {row.skipped}"
    step = row.profile.step
    parts = (step.seconds, step.kernel_seconds, step.host_seconds, step.other_seconds)
    return name, *(f"{1e3 * seconds:.2f} ms" for seconds in parts), f"{step.utilisation:.1%}"


SECTIONS: dict[str, tuple[Row, Callable[[Any], Row]]] = {
    "backends": (
        (
            *("backend", "text", "UNet", "VAE", "total", "steps/s", "ratio", "interval", "first picture", "memory"),
            *("files", "PSNR"),
        ),
        _backend,
    ),
    "throughput": (("backend", "start", "a step", "interval", "R2"), _throughput),
    "latency": (("backend", "pictures", "p50", "p90", "p99"), _latency),
    "ladder": (("with", "UNet", "to the one before", "to nothing", "weights", "tensors", "PSNR"), _rung),
    "attention": (("layer", "calls", "method", "time", "GFLOP/s", "memory", "PSNR"), _attention),
    "winograd": (("layer", "calls", "method", "time", "GFLOP", "memory", "PSNR"), _winograd),
    "tome_sweep": (
        ("backend", "ratio", "UNet", "to ratio 0", "picture", "PSNR", "accuracy", "distance"),
        _tome,
    ),
    "profiles": (("backend", "average step", "kernels", "host", "other", "of the peak"), _profile),
}
