"""Profiles in the report: the average step and the heaviest kernels of each side, and the roofs above them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks import schema
from benchmarks.plot_style import Theme, legend, mark, new_figure, series
from benchmarks.report_tables import NONE, Cell, Row, Table, Unit, is_ours, number
from runtime.profile import Kernel, Profile

TOP = 10  # kernels a table
LEAST, LARGEST = 0.001, 400.0  # share of the time of a kernel that is drawn, and the area of one that has all of it


def _known(rows: Sequence[schema.ProfileRow]) -> Iterator[tuple[schema.ProfileRow, Profile]]:
    yield from ((row, row.profile) for row in rows if row.profile is not None)


def steps(rows: list[schema.ProfileRow]) -> Table:
    """Return where the time of an average step goes: kernels, the host in the UNet's call, what is outside of it."""
    unit = Unit.of([profile.step.seconds] for _, profile in _known(rows))
    made = []
    for row in rows:
        name, data = Cell(row.name, row.resolution), {"backend": row.name}
        if row.profile is None:
            made.append(Row([name], data, skipped=f"skipped: {row.skipped}"))
            continue
        step = row.profile.step
        parts = (step.kernel_seconds, step.host_seconds, step.other_seconds)
        shares = [
            Cell(unit.cell([part]).text, f"{number(100 * part / step.seconds if step.seconds else None, 1)} %")
            for part in parts
        ]
        rest = [Cell(number(step.flops / 1e9, 0)), Cell(number(100 * step.utilisation, 1))]
        made.append(Row([name, unit.cell([step.seconds]), *shares, *rest], data, ours=is_ours(row.name)))
    heads = [f"{name}, {unit.name}" for name in ("Average step", "Kernels", "Host", "Other")]
    return Table("Where the time of a step goes", ["Backend", *heads, "GFLOP", "Of NumPy's rate, %"], made)


def kernels(rows: list[schema.ProfileRow]) -> list[Table]:
    """Return for each side a table of the kernels that took most of the time of all components."""
    return [
        _kernels(f"{row.name}, {row.resolution}: kernels with most of the time", row.name, profile.kernels[:TOP])
        for row, profile in _known(rows)
    ]


def _kernels(caption: str, name: str, heaviest: Sequence[Kernel]) -> Table:
    made = []
    for kernel in heaviest:
        of_roof = NONE if kernel.of_roof is None else f"{100 * kernel.of_roof:.0f} %"
        rates = (kernel.flops_per_second, kernel.bytes_per_second)
        cells = [Cell(kernel.kernel, kernel.component), Cell(str(kernel.calls)), Cell(number(1e3 * kernel.seconds, 1))]
        cells += [Cell(number(100 * kernel.share, 1))]
        cells += [Cell(number(None if rate is None else rate / 1e9, 0)) for rate in rates]
        cells += [Cell(number(kernel.intensity, 1)), Cell(of_roof, kernel.bound or "")]
        made.append(Row(cells, {"backend": name}))
    columns = ["Kernel", "Calls", "Time, ms", "Share, %", "GFLOP/s", "GB/s", "FLOP/B", "Of the roof"]
    return Table(caption, columns, made)


def roofline(theme: Theme, rows: Sequence[schema.ProfileRow]) -> Any:
    """Draw each kernel's rate over its intensity below this machine's roofs; a symbol's area is its share of the time.

    Source: Williams, Waterman and Patterson, "Roofline", Communications of the ACM 52(4), 2009.
    """
    figure, axes = new_figure(3.4)
    axes.set_xscale("log")
    axes.set_yscale("log")
    colours = series(row.name for row, _ in _known(rows))
    drawn: list[float] = []
    for row, profile in _known(rows):
        points = [kernel for kernel in profile.kernels if kernel.intensity and kernel.share >= LEAST]
        xs = [kernel.intensity or 0 for kernel in points]
        ys = [(kernel.flops_per_second or 0) / 1e9 for kernel in points]
        areas = [max(4.0, LARGEST * kernel.share) for kernel in points]
        colour = theme[colours[row.name]]
        mark([axes.scatter(xs, ys, areas, color=colour, alpha=0.65, linewidths=0)], "backend", row.name)
        drawn += xs
    peaks = [profile.peak for _, profile in _known(rows)]
    compute = max(peak.flops_per_second for peak in peaks) / 1e9
    memory = max(peak.bytes_per_second for peak in peaks) / 1e9
    ridge = compute / memory
    ends = [min([*drawn, ridge]) / 2, ridge, max([*drawn, ridge]) * 2]
    axes.plot(ends, [min(compute, memory * x) for x in ends], color=theme["ink"], lw=1.1)
    axes.annotate(f"{compute:,.0f} GFLOP/s", (ends[-1], compute), (0, 3), textcoords="offset points", ha="right")
    axes.annotate(f"{memory:.0f} GB/s", (ends[0], memory * ends[0]), (2, 6), textcoords="offset points")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.grid(True)
    axes.tick_params(which="both", length=0, labelcolor=theme["muted"])
    axes.set_xlabel("FLOP a byte")
    axes.set_ylabel("GFLOP/s")
    legend(figure, theme, colours)
    return figure
