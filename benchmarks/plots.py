"""Plots of the report, drawn by matplotlib, and figure and pictures of token merging as files.

Each plot is a function of the theme and those of a section's rows that were measured.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from benchmarks import schema
from benchmarks.plot_style import (
    ADVICE,
    LIGHT,
    MARKERS,
    Theme,
    available,
    bar,
    legend,
    mark,
    new_figure,
    note,
    row_axes,
    save,
    series,
    short,
)
from benchmarks.report_pictures import read_picture
from benchmarks.report_tables import Unit, median
from utils.errors import UserError

PLAIN_ATTENTION = ("plain", "math")


def totals(theme: Theme, backends: Sequence[schema.Backend]) -> Any:
    """Draw a picture's seconds by backend, stacked by part. What is no part (the sampler, say) is "other"."""
    figure, axes = new_figure(0.65 + 0.3 * len(backends))
    row_axes(axes, [backend.name for backend in backends], "backend")
    unit = Unit.of(backend.total_seconds for backend in backends)
    colours = {"Text encoder": "series-2", "UNet": "series-0", "VAE decoder": "series-1", "other": "rest"}
    shown: set[str] = set()
    for y, backend in enumerate(backends):
        total, left = median(backend.total_seconds) or 0.0, 0.0
        parts = [median(s) or 0.0 for s in (backend.text_seconds, backend.unet_seconds, backend.vae_seconds)]
        for part, seconds in zip(colours, [*parts, total - sum(parts)], strict=True):
            if seconds > 0.002 * total:
                mark(bar(theme, axes, y, seconds / unit.length, colours[part], left), "backend", backend.name)
                left, shown = left + seconds / unit.length, shown | {part}
        label = note(axes, left, y, unit.cell([total]).text)
        mark([label], "backend", backend.name)
    axes.margins(x=0.08)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"time of a picture, {unit.name}")
    legend(figure, theme, {part: colour for part, colour in colours.items() if part in shown})
    return figure


def ladder(theme: Theme, rungs: Sequence[schema.Rung]) -> Any:
    """Draw the waterfall of the UNet's seconds: the first and last in full, between them what each step saves.

    Each step is the ratio of two rungs that ran in turn; seconds are the first rung's times all ratios up to here.
    """
    unit = Unit.of(rung.unet_seconds for rung in rungs)
    first = (median(rungs[0].unet_seconds) or 0.0) / unit.length
    medians = [first * (rung.ratio or 0.0) / (rungs[0].ratio or 1.0) for rung in rungs]
    names, last = [rung.name for rung in rungs], len(rungs)
    figure, axes = new_figure(0.7 + 0.25 * (last + 1))
    row_axes(axes, [*names, "all of them"])
    colours = {"rest": names[0]}
    for y, (name, now) in enumerate(zip(names, medians, strict=True)):
        before = medians[y - 1] if y else 0.0
        colour, meaning = ("series-1", "saves") if now <= before else ("series-4", "costs")
        colours |= {colour: meaning} if y else {}
        text = f"{100 * (now / before - 1):+.0f} %".replace("-", "−") if y else f"{now:.{unit.decimals}f}"
        parts = bar(theme, axes, y, now - before, colour if y else "rest", before)
        mark([*parts, note(axes, max(now, before), y, text), axes.get_yticklabels()[y]], "rung", name)
    bar(theme, axes, last, medians[-1], "series-0")
    note(axes, medians[-1], last, f"{medians[-1]:.{unit.decimals}f}", weight="bold")
    axes.margins(x=0.08)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"UNet, {unit.name}")
    legend(figure, theme, {meaning: colour for colour, meaning in (colours | {"series-0": "all of them"}).items()})
    return figure


def attention(theme: Theme, layers: Sequence[schema.AttentionRow]) -> Any:
    """Draw latency, memory and GFLOP/s by layer and method."""
    unit = Unit.of(row.seconds for row in layers)
    panels: dict[str, Callable[[schema.AttentionRow], float]] = {
        f"latency, {unit.name}": lambda row: (median(row.seconds) or 0.0) / unit.length,
        "memory, MB": lambda row: row.memory / 1e6,
        "GFLOP/s": lambda row: row.gflops,
    }
    return _by_layer(theme, layers, panels)


def winograd(theme: Theme, layers: Sequence[schema.WinogradRow]) -> Any:
    """Draw latency, memory and operations by layer and method."""
    unit = Unit.of(row.seconds for row in layers)
    panels: dict[str, Callable[[schema.WinogradRow], float]] = {
        f"latency, {unit.name}": lambda row: (median(row.seconds) or 0.0) / unit.length,
        "memory, MB": lambda row: row.memory / 1e6,
        "GFLOP": lambda row: row.gflop,
    }
    return _by_layer(theme, layers, panels)


def _by_layer(theme: Theme, rows: Sequence[Any], panels: dict[str, Callable[[Any], float]]) -> Any:
    """Draw a panel for each measure, in each a group of bars for each layer and in it a bar for each method."""
    layers, colours = list(dict.fromkeys(row.layer for row in rows)), series(row.method for row in rows)
    methods, height = list(colours), 0.8 / len(colours)
    figure, all_axes = new_figure(0.7 + len(layers) * (0.12 + 0.13 * len(methods)), ncols=len(panels), sharey=True)
    for axes, (label, measure) in zip(all_axes, panels.items(), strict=True):
        row_axes(axes, layers)
        for row in rows:
            y = layers.index(row.layer) + (methods.index(row.method) - (len(methods) - 1) / 2) * height
            value = measure(row)
            if not math.isfinite(value):
                continue
            bar(theme, axes, y, value, colours[row.method], height=height)
            note(axes, value, y, f"{value:,.0f}" if value >= 100 else f"{value:.3g}", size=6.5, color=theme["muted"])
        axes.locator_params(axis="x", nbins=3)
        axes.margins(x=0.28)
        axes.set_xlim(left=0)
        axes.set_xlabel(label)
    legend(figure, theme, colours)
    return figure


def throughput(theme: Theme, lines: Sequence[schema.Throughput]) -> Any:
    """Draw the seconds of pictures over their steps, and the fitted lines."""
    figure, axes = new_figure(2.9)
    colours = series(line.name for line in lines)
    for marker, line in zip(MARKERS * len(lines), lines, strict=False):
        colour, ends = theme[colours[line.name]], [0, max(line.steps, default=1)]
        points = axes.plot(line.steps, line.seconds, marker, color=colour, markersize=4, markeredgewidth=0)
        points += axes.plot(ends, [line.start_seconds + n * line.step_seconds for n in ends], color=colour, lw=1.2)
        mark(points, "backend", line.name)
    axes.grid(True)
    axes.tick_params(length=0, labelcolor=theme["muted"])
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("steps")
    axes.set_ylabel("time of a picture, s")
    legend(figure, theme, colours)
    return figure


def latency(theme: Theme, backends: Sequence[schema.Latency]) -> Any:
    """Draw a histogram of each backend's pictures with its percentiles. Axes are their own: they show spread."""
    unit = Unit.of(row.seconds for row in backends)
    figure, all_axes = new_figure(0.3 + 1.05 * len(backends), nrows=len(backends), squeeze=False)
    for axes, row in zip(all_axes[:, 0], backends, strict=True):
        values = [value / unit.length for value in row.seconds if math.isfinite(value)]
        axes.hist(values, 40, color=theme["series-0"], edgecolor=theme["surface"], linewidth=0.5)
        for i, (name, value) in enumerate((("p50", row.p50), ("p90", row.p90), ("p99", row.p99))):
            if not math.isfinite(value):
                continue
            x, down = value / unit.length, -1 - 8 * i  # below one another: they may be close
            axes.axvline(x, color=theme["ink"], lw=0.8)
            axes.annotate(name, (x, 1), (2, down), ("data", "axes fraction"), "offset points", va="top", size=7)
        axes.set_title(short(row.name), loc="left", size=8)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        mark([axes], "backend", row.name)
    all_axes[-1, 0].set_xlabel(f"time of a picture, {unit.name}")
    return figure


def tome(theme: Theme, sweep: Sequence[schema.TomeRow]) -> Any:
    """Draw time and distance over the ratio: solid symbols for efficient attention, hollow ones for plain attention.

    The distance is Fréchet's where the results have it, else the PSNR to the picture without merging.
    """
    figure, left = new_figure(3.2)
    right = left.twinx()
    has_frechet = any(row.frechet is not None for row in sweep)
    unit = Unit.of(row.total_seconds for row in sweep)
    groups = list(dict.fromkeys((row.name, row.attention) for row in sweep))
    shapes = dict(zip(dict.fromkeys(name for name, _ in groups), itertools.cycle(MARKERS), strict=False))
    for name, method in groups:
        rows = sorted((r for r in sweep if (r.name, r.attention) == (name, method)), key=lambda row: row.ratio)
        times = [(row.ratio, (median(row.total_seconds) or 0.0) / unit.length) for row in rows]
        distances = [(row.ratio, row.frechet if has_frechet else row.psnr_to_plain) for row in rows]
        ends = [(row.ratio, *row.frechet_interval) for row in rows if row.frechet_interval and has_frechet]
        for axes, colour, points in ((left, theme["series-0"], times), (right, theme["series-2"], distances)):
            known = [point for point in points if point[1] is not None]
            style = {"color": colour, "lw": 1.1, "markersize": 5.5, **_symbol(theme, method, colour, shapes[name])}
            mark(axes.plot(*zip(*known, strict=True), **style) if known else [], "backend", name)
        for ratio, low, high in ends:
            mark(right.plot([ratio, ratio], [low, high], color=theme["series-2"], lw=0.7), "backend", name)
    distance = "Fréchet distance" if has_frechet else "PSNR to no merging, dB"
    _tome_axes(theme, left, right, f"time of a picture, {unit.name}", distance)
    _tome_legend(figure, theme, shapes, [method for _, method in groups])
    return figure


def _symbol(theme: Theme, method: str, colour: str, marker: str = "o") -> dict[str, Any]:
    """Return line and symbol of a way of attention."""
    hollow = method in PLAIN_ATTENTION
    return {"ls": "--" if hollow else "-", "marker": marker, "mfc": theme["surface"] if hollow else colour}


def _tome_axes(theme: Theme, left: Any, right: Any, time: str, distance: str) -> None:
    for axes, label, colour in ((left, time, "series-0"), (right, distance, "series-2")):
        axes.set_ylabel(label, color=theme[colour])
        axes.tick_params(length=0, labelcolor=theme["muted"])
        axes.tick_params(axis="y", labelcolor=theme[colour])
    left.set_ylim(bottom=0)
    left.grid(True)
    left.set_xlabel("ratio of merged tokens")


def _tome_legend(figure: Any, theme: Theme, shapes: dict[str, str], methods: Iterable[str]) -> None:
    """Name the fillings (attention) and, where there are several backends, the shapes of the symbols."""
    from matplotlib.lines import Line2D

    ink = theme["muted"]
    handles = [Line2D([], [], color=ink, label=name, **_symbol(theme, name, ink)) for name in dict.fromkeys(methods)]
    if len(shapes) > 1:
        handles += [Line2D([], [], color=ink, ls="", marker=shape, label=name) for name, shape in shapes.items()]
    figure.legend(handles=handles, loc="outside upper left", ncols=4)


def write_tome_figure(results: schema.Results, path: Path) -> None:
    """Write the figure of token merging, on white: an SVG, PNG or PDF by the suffix of ``path``.

    Raises:
        UserError: matplotlib is not installed, or there was no sweep.
    """
    if not available():
        raise UserError(ADVICE)
    if not results.tome_sweep:
        raise UserError(f"{path} can't be drawn: the results have no sweep of token merging")
    save(LIGHT, tome, results.tome_sweep, path, dpi=200, facecolor=LIGHT["surface"])


def write_tome_grid(results: schema.Results, base: Path, path: Path) -> None:
    """Write the sweep's pictures as a PNG, a row for each backend and attention, a column for each ratio.

    Pictures lie relative to ``base``. One that is missing leaves its place empty.

    Raises:
        UserError: there is no picture of a sweep.
    """
    images = {
        (f"{row.name}, {row.attention}", row.ratio): read_picture(base, row.picture) for row in results.tome_sweep
    }
    found = [image for image in images.values() if image is not None]
    if not found:
        raise UserError(f"{path} can't be made: the results in {base} have no pictures of token merging")
    width, height = max(image.width for image in found), max(image.height for image in found)
    names, ratios = list(dict.fromkeys(name for name, _ in images)), sorted({ratio for _, ratio in images})
    text = max(10, width // 14)
    gap, line = text // 2, 2 * text
    font = ImageFont.load_default(size=text)
    sheet = Image.new(
        "RGB", (gap + len(ratios) * (width + gap), len(names) * (height + 2 * line) + gap), LIGHT["surface"]
    )
    pen = ImageDraw.Draw(sheet)
    for i, name in enumerate(names):
        top = i * (height + 2 * line) + gap
        pen.text((gap, top), name, LIGHT["ink"], font)
        for j, ratio in enumerate(ratios):
            left = gap + j * (width + gap)
            pen.text((left, top + line - gap // 2), f"ratio {ratio:g}", LIGHT["muted"], font)
            image = images.get((name, ratio))
            if image is not None:
                sheet.paste(image, (left, top + 2 * line - gap))
    sheet.save(path, format="PNG")
