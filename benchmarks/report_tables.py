"""Tables of the report: what each section of the results says, as text that is ready to be shown.

Seconds are medians with their interval (``benchmarks.results.interval``) below them, in the unit of their column.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from benchmarks import schema
from benchmarks.results import OURS, decibels, interval
from utils import units

NONE = "–"


@dataclass(frozen=True)
class Cell:
    """A text, and a second one that is shown smaller below it. ``repeat``: the row above has the same."""

    text: str
    small: str = ""
    repeat: bool = False


@dataclass(frozen=True)
class Row:
    """Cells of a row. ``data`` are the attributes by which switches find it; a row with ``skipped`` has one cell."""

    cells: list[Cell]
    data: dict[str, str] = field(default_factory=dict)
    skipped: str = ""
    ours: bool = False


@dataclass(frozen=True)
class Table:
    """Column heads, the first ``words`` of them aligned left, and rows."""

    caption: str
    columns: list[str]
    rows: list[Row]
    words: int = 1
    kind: Literal["table"] = "table"


@dataclass(frozen=True)
class Unit:
    """How a column shows its seconds: the unit, its length in seconds and the decimals."""

    name: str
    length: float
    decimals: int

    @classmethod
    def of(cls, columns: Iterable[Sequence[float]]) -> Unit:
        """Choose for a column of runs: three digits for its fastest median, two decimals at most."""
        medians = [value for value in map(median, columns) if value]
        name, length = ("s", 1.0) if max(medians, default=1) >= 1 else ("ms", 1e-3)
        digits = 2 - math.floor(math.log10(min(medians, default=1) / length))
        return cls(name, length, min(max(digits, 0), 2))

    def cell(self, seconds: Sequence[float]) -> Cell:
        """Return the median of some runs, with its interval where there are several."""
        finite = [value for value in seconds if math.isfinite(value)]
        if not finite:
            return Cell(NONE)
        return Cell(self._text(statistics.median(finite)), self._range(*interval(finite)) if len(finite) > 1 else "")

    def _text(self, seconds: float) -> str:
        return f"{seconds / self.length:.{self.decimals}f}"

    def _range(self, low: float, high: float) -> str:
        return f"{self._text(low)}–{self._text(high)}"


def median(seconds: Sequence[float]) -> float | None:
    """Return the median of the finite values, None where there are none."""
    finite = [value for value in seconds if math.isfinite(value)]
    return statistics.median(finite) if finite else None


def number(value: float | None, decimals: int = 2) -> str:
    """Format a number; what is unknown is a dash, what is infinite a sign."""
    if value is None or math.isnan(value):
        return NONE
    return "∞" if math.isinf(value) else f"{value:,.{decimals}f}"


def memory(value: float | None) -> str:
    """Format bytes."""
    return NONE if value is None else units.size(value)


def date(text: str) -> str:
    """Format a date of ISO 8601 to the minute; another text stays as it is."""
    try:
        return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M %Z}".strip()
    except ValueError:
        return text


def _ratio(value: float | None, ends: Sequence[float] | None = None) -> Cell:
    return Cell(number(value), f"{number(ends[0])}–{number(ends[1])}" if ends and value is not None else "")


def _plain(*texts: str) -> list[Cell]:
    return [Cell(text) for text in texts]


def is_ours(name: str) -> bool:
    """Whether a backend is this project: ``tvm``, or a variant like ``tvm-bfloat16``."""
    return name == OURS or name.startswith(f"{OURS}-")


def backend_times(backends: list[schema.Backend]) -> Table:
    """Return the seconds of a picture and of its parts, and what a picture is worth."""
    parts: list[tuple[str, Callable[[schema.Backend], list[float]]]] = [
        ("Picture", lambda b: b.total_seconds),
        ("Text", lambda b: b.text_seconds),
        ("UNet", lambda b: b.unet_seconds),
        ("VAE", lambda b: b.vae_seconds),
    ]
    columns = [(name, of, Unit.of(map(of, backends))) for name, of in parts]
    rows = []
    for backend in backends:
        cells = [Cell(backend.name, backend.resolution), *(unit.cell(of(backend)) for _, of, unit in columns)]
        cells += [_ratio(backend.ratio, backend.ratio_interval)]
        cells += _plain(number(backend.iterations_per_second), decibels(backend.psnr, NONE))
        rows.append(_backend_row(backend, cells))
    heads = [f"{name}, {unit.name}" for name, _, unit in columns]
    return Table("Time of a picture", ["Backend", *heads, "Our ratio", "Iterations/s", "PSNR, dB"], rows)


def backend_costs(backends: list[schema.Backend]) -> Table:
    """Return the seconds of each stage before the first picture, and memory and files; without those skipped."""
    backends = [backend for backend in backends if backend.skipped is None]
    stages = list(dict.fromkeys(stage for b in backends for stage in b.prepare_seconds))
    rows = []
    for backend in backends:
        prepared = backend.prepare_seconds
        cells = [Cell(backend.name, backend.resolution), *_plain(*(number(prepared.get(stage), 1) for stage in stages))]
        cells += _plain(number(sum(prepared.values()) if prepared else None, 1))
        cells += _plain(number(backend.first_picture_seconds, 1), memory(backend.peak_memory), memory(backend.size))
        rows.append(_backend_row(backend, cells))
    heads = [f"{stage.capitalize()}, s" for stage in stages]
    columns = ["Backend", *heads, "All stages, s", "First picture, s", "Peak memory", "Files"]
    return Table("Preparation and memory", columns, rows)


def _backend_row(backend: schema.Backend, cells: list[Cell]) -> Row:
    data = {"backend": backend.name}
    if backend.skipped is not None:
        return Row(cells[:1], data, skipped=f"skipped: {backend.skipped}")
    return Row(cells, data, ours=is_ours(backend.name))


def ladder(rungs: list[schema.Rung]) -> Table:
    """Return the UNet's seconds after each optimisation."""
    unit = Unit.of(rung.unet_seconds for rung in rungs)
    rows = []
    for rung in rungs:
        cells = [Cell(rung.name), unit.cell(rung.unet_seconds), _ratio(rung.ratio), _ratio(rung.step_ratio)]
        cells += _plain(memory(rung.parameters), memory(rung.workspace), decibels(rung.psnr, NONE))
        data = {"rung": rung.name}
        skipped = rung.skipped is not None
        rows.append(Row(cells[:1] if skipped else cells, data, f"skipped: {rung.skipped}" if skipped else ""))
    heads = [f"UNet, {unit.name}", "To the first", "To the one before", "Parameters", "Workspace", "PSNR, dB"]
    return Table("UNet by optimisation", ["Optimisation", *heads], rows)


def attention(layers: list[schema.AttentionRow]) -> Table:
    """Return the latency of each layer by method."""
    unit = Unit.of(row.seconds for row in layers)
    rows, before = [], None
    for row in layers:
        shape = f"{row.heads} × {row.queries} × {row.keys} × {row.head_dim}"
        key = (row.layer, shape, row.calls)
        cells = [Cell(row.layer, repeat=key == before), Cell(shape, repeat=key == before), Cell(row.method)]
        cells += [Cell(str(row.calls)), unit.cell(row.seconds)]
        cells += _plain(number(row.gflops, 0), memory(row.memory), decibels(row.psnr))
        rows.append(Row(cells))
        before = key
    columns = ["Layer", "Heads × queries × keys × width", "Method", "Calls", f"Latency, {unit.name}"]
    return Table("Attention by layer", [*columns, "GFLOP/s", "Memory", "PSNR, dB"], rows, words=3)


def winograd(layers: list[schema.WinogradRow]) -> Table:
    """Return operations, latency, memory and error of each convolution by method."""
    unit = Unit.of(row.seconds for row in layers)
    rows, before = [], None
    for row in layers:
        shape = f"{row.channels} → {row.filters}, {row.height} × {row.width}"
        key = (row.layer, shape, row.calls)
        cells = [Cell(row.layer, repeat=key == before), Cell(shape, repeat=key == before), Cell(row.method)]
        cells += [Cell(str(row.calls)), Cell(number(row.gflop)), unit.cell(row.seconds)]
        rows.append(Row(cells + _plain(memory(row.memory), decibels(row.psnr))))
        before = key
    columns = ["Layer", "Channels, height × width", "Method", "Calls", "GFLOP", f"Latency, {unit.name}"]
    return Table("3x3 convolutions by layer", [*columns, "Memory", "PSNR, dB"], rows, words=3)


def throughput(lines: list[schema.Throughput]) -> Table:
    """Return the cost of a start and of a step, from the fitted lines."""
    start, step = Unit.of([line.start_seconds] for line in lines), Unit.of([line.step_seconds] for line in lines)
    rows = []
    for line in lines:
        cost = step.cell([line.step_seconds])
        ends = "–".join(step.cell([end]).text for end in line.interval)
        cells = [Cell(line.name, line.resolution), start.cell([line.start_seconds]), Cell(cost.text, ends)]
        cells += _plain(number(1 / line.step_seconds if line.step_seconds > 0 else None), number(line.r2, 4))
        rows.append(Row(cells, {"backend": line.name}, ours=is_ours(line.name)))
    columns = ["Backend", f"Start, {start.name}", f"Step, {step.name}", "Steps/s", "R²"]
    return Table("Cost of a start and of a step", columns, rows)


def latency(backends: list[schema.Latency]) -> Table:
    """Return the percentiles of many pictures."""
    unit = Unit.of(row.seconds for row in backends)
    rows = []
    for row in backends:
        cells = [Cell(row.name, row.resolution), Cell(str(len(row.seconds)))]
        cells += [unit.cell([value]) for value in (row.p50, row.p90, row.p99)]
        rows.append(Row(cells, {"backend": row.name}, ours=is_ours(row.name)))
    heads = [f"{name}, {unit.name}" for name in ("p50", "p90", "p99")]
    return Table("Time of a picture, percentiles", ["Backend", "Pictures", *heads], rows)


def tome(sweep: list[schema.TomeRow]) -> Table:
    """Return time and quality at each ratio of merged tokens."""
    unet, total = Unit.of(row.unet_seconds for row in sweep), Unit.of(row.total_seconds for row in sweep)
    rows = []
    for row in sweep:
        cells = [Cell(row.name, row.resolution), *_plain(row.attention, number(row.ratio))]
        cells += [unet.cell(row.unet_seconds), Cell(number(row.unet_ratio)), total.cell(row.total_seconds)]
        cells += _plain(decibels(row.psnr_to_plain, NONE))
        cells += _plain(number(None if row.accuracy is None else 100 * row.accuracy, 1))
        rows.append(Row([*cells, _ratio(row.frechet, row.frechet_interval)], {"backend": row.name}))
    columns = ["Backend", "Attention", "Ratio", f"UNet, {unet.name}", "To ratio 0", f"Picture, {total.name}"]
    return Table("Token merging", [*columns, "PSNR, dB", "Accuracy, %", "Fréchet distance"], rows, words=2)


def environment(place: schema.Environment) -> Table:
    """Return where it ran, a line for each fact."""
    facts = {
        "CPU": place.cpu,
        "Features": ", ".join(place.features),
        "Cores, threads": f"{place.cores}, {place.threads}",
        "Memory": memory(place.memory),
        "System": place.system,
        "Python": place.python,
        **{name: version or "not installed" for name, version in place.versions.items()},
        "Commit": place.commit or NONE,
        "Date": date(place.date),
    }
    return Table("Where it ran", [], [Row(_plain(*fact)) for fact in facts.items()], words=2)


def settings(values: dict[str, Any]) -> Table:
    """Return the settings of the run, a line each."""
    return Table("Settings", [], [Row(_plain(name, _setting(value))) for name, value in values.items()], words=2)


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_setting, value)) or NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}" if math.isfinite(value) else NONE
    return NONE if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
