"""The report: results of benchmark.py as one HTML file that needs nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from benchmarks import plot_style, plots, report_profiles, report_tables, schema
from benchmarks.profiles import TRACES
from benchmarks.report_pictures import Grid, backend_grids, tome_grids
from benchmarks.report_tables import Table, median
from utils.files import write_whole

FILES = Path(__file__).with_name("report_files")


@dataclass(frozen=True)
class Plot:
    """A plot as an ``<svg>`` element."""

    caption: str
    svg: Markup
    kind: Literal["plot"] = "plot"


Block = Table | Plot | Grid


@dataclass(frozen=True)
class Section:
    """A heading, a line that says how to read it, and what is below."""

    name: str
    title: str
    note: str
    blocks: list[Block]


@dataclass(frozen=True)
class Topic:
    """How a list of the results becomes a section: ``name`` is the list's, ``seconds`` say which rows the plot has."""

    name: str
    title: str
    note: str
    table: Callable[[list[Any]], Table]
    caption: str
    plot: Callable[[plot_style.Theme, Sequence[Any]], Any]
    seconds: Callable[[Any], list[float]]
    more: Callable[[list[Any], Path], Sequence[Block]] = lambda rows, base: []


TOPICS = (
    Topic(
        "backends",
        "Backends",
        "Our ratio is our time to theirs in the same rounds: below 1 we are faster.",
        report_tables.backend_times,
        "Median time of a picture by part",
        plots.totals,
        lambda row: row.total_seconds,
        lambda rows, base: [report_tables.backend_costs(rows), *backend_grids(rows, base)],
    ),
    Topic(
        "ladder",
        "Optimisations",
        "The UNet with one more optimisation in each row, in the order in which they are turned on.",
        report_tables.ladder,
        "What each optimisation saves",
        plots.ladder,
        lambda row: row.unet_seconds,
    ),
    Topic(
        "attention",
        "Attention",
        "The shape of each attention layer by itself. Calls are those of one UNet, memory is that of one call.",
        report_tables.attention,
        "Attention by layer and method",
        plots.attention,
        lambda row: row.seconds,
    ),
    Topic(
        "winograd",
        "Winograd convolutions",
        "3x3 convolutions: direct, in tile registers, or by F(m x m, 3x3). Operations are those of the products.",
        report_tables.winograd,
        "Convolutions by layer and method",
        plots.winograd,
        lambda row: row.seconds,
    ),
    Topic(
        "throughput",
        "Throughput",
        "A picture costs its start and so much a step: the line through pictures of 1 to N steps.",
        report_tables.throughput,
        "Time over steps, and the fitted lines",
        plots.throughput,
        lambda row: row.seconds,
    ),
    Topic(
        "latency",
        "Latency",
        "How long a picture takes, and how much that varies from one to the next.",
        report_tables.latency,
        "Pictures by time",
        plots.latency,
        lambda row: row.seconds,
    ),
    Topic(
        "tome_sweep",
        "Token merging",
        "Tokens that are alike are merged before attention: the more, the faster and the farther from the original.",
        report_tables.tome,
        "Solid symbols: efficient attention; hollow: plain attention",
        plots.tome,
        lambda row: row.total_seconds,
        tome_grids,
    ),
    Topic(
        "profiles",
        "Profiles",
        "Kernels against this machine's measured roofs. Those that use tile registers, or compute less than the "
        "operator that they stand for (Winograd), can lie above them.",
        report_profiles.steps,
        "Kernels below the roofs; a symbol's area is its share of the time",
        report_profiles.roofline,
        lambda row: [] if row.profile is None else [row.profile.step.seconds],
        lambda rows, base: report_profiles.kernels(rows),
    ),
)


def write_report(results: schema.Results, base: Path, folder: Path) -> Path:
    """Write ``folder/index.html``, whole or not at all, and return its path.

    Pictures of the results lie relative to ``base``, the folder of their file, and are embedded; of the traces in
    ``base/traces`` there are links. Without matplotlib the report has tables only, and says so.

    Raises:
        OSError: the folder can't be made or the file can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index.html"
    loader = jinja2.FileSystemLoader(FILES)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template("report.html").render(
        place=results.environment,
        date=report_tables.date(results.environment.date),
        sections=_sections(results, base),
        switches={kind: (label, names) for kind, label, names in _switches(results) if len(names) > 1},
        traces=_traces(results, base, folder),
        missing="" if plot_style.available() else plot_style.ADVICE,
        light=plot_style.LIGHT,
        dark=plot_style.DARK,
        style=Markup((FILES / "report.css").read_text(encoding="utf-8")),  # noqa: S704 - our own file
        script=Markup((FILES / "report.js").read_text(encoding="utf-8")),  # noqa: S704 - our own file
    )
    write_whole(path, text)
    return path


def _sections(results: schema.Results, base: Path) -> list[Section]:
    """Return the sections that the results have something for."""
    sections = []
    for topic in TOPICS:
        rows = getattr(results, topic.name)
        if rows:
            drawn = [row for row in rows if median(topic.seconds(row))]
            blocks = [topic.table(rows), *_plots(topic, drawn), *topic.more(rows, base)]
            sections.append(Section(topic.name, topic.title, topic.note, blocks))
    tables = [report_tables.environment(results.environment), report_tables.settings(results.settings)]
    blocks = [table for table in tables if table.rows]
    return [*sections, Section("environment", "Environment", "Machine, versions and settings of the run.", blocks)]


def _plots(topic: Topic, rows: Sequence[Any]) -> list[Plot]:
    """Return the plot of some rows, one a resolution where they have several; none without matplotlib."""
    if not plot_style.available():
        return []
    sizes = list(dict.fromkeys(getattr(row, "resolution", "") for row in rows))
    found = []
    for number, size in enumerate(sizes):
        drawn = [row for row in rows if getattr(row, "resolution", "") == size]
        svg = plot_style.inline(f"{topic.name}-{number}", topic.plot, drawn)
        caption = topic.caption if len(sizes) == 1 else f"{topic.caption}, {size}"
        found.append(Plot(caption, Markup(svg)))  # noqa: S704 - matplotlib escapes what it is given
    return found


def _switches(results: schema.Results) -> list[tuple[str, str, list[str]]]:
    """Return what can be shown and hidden: attribute, label, names."""
    rows: list[Any] = [
        *(*results.backends, *results.throughput, *results.latency, *results.tome_sweep, *results.profiles)
    ]
    backends = list(dict.fromkeys(row.name for row in rows))
    rungs = list(dict.fromkeys(rung.name for rung in results.ladder))
    return [("backend", "Backends", backends), ("rung", "Optimisations", rungs)]


def _traces(results: schema.Results, base: Path, folder: Path) -> list[tuple[str, str]]:
    """Return name and link, relative to ``folder``, of each trace of the run."""
    named = sorted({base / TRACES / f"{row.resolution}.json" for row in results.profiles})
    traces = [path for path in named if path.is_file()]
    relative = [Path(os.path.relpath(trace.resolve(), folder.resolve())).as_posix() for trace in traces]
    return [(trace.name, quote(link)) for trace, link in zip(traces, relative, strict=True)]
