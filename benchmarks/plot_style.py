"""How the report's plots look: colours, axes, bars, legends; and how one becomes a part of the page.

An inline plot has no colours of its own: it names CSS variables, so that it follows the page's colour scheme. Marks of
a backend or rung carry ``data-backend`` or ``data-rung``, by which the page's switches find them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
Theme = dict[str, str]

LIGHT: Theme = {
    "surface": "#ffffff",
    "ink": "#16181d",
    "muted": "#5b606b",
    "line": "#e2e4e9",
    "rest": "#b9bdc7",
    "link": "#1f62b5",
    **{f"series-{i}": c for i, c in enumerate(["#2a78d6", "#12996a", "#d68b00", "#4a3aa7", "#d03b3b", "#7a7f8a"])},
}
DARK: Theme = {
    "surface": "#15171c",
    "ink": "#eef0f4",
    "muted": "#a4a9b5",
    "line": "#2c3038",
    "rest": "#565c68",
    "link": "#7db3f5",
    **{f"series-{i}": c for i, c in enumerate(["#4c94ec", "#27b583", "#e0a02e", "#9a8df0", "#ef6f6f", "#9aa0ac"])},
}
NAMED: Theme = {name: f"#0101{i:02x}" for i, name in enumerate(LIGHT, 16)}  # replaced by var(--name)
SERIES = 6
WIDTH = 5.8  # inches; the page shows one as about 1.6 CSS inches
MARKERS = "osD^vP"
METADATA = ("Creator", "Date", "Format", "Type")  # left out
ADVICE = "plots need matplotlib: pip install -r requirements-bench.txt"


def available() -> bool:
    """Whether matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def inline(name: str, draw: Callable[[Theme, Sequence[T]], Any], rows: Sequence[T]) -> str:
    """Return a plot as an ``<svg>`` element. ``name`` sets its ids apart from those of the page's other plots."""
    stream = io.StringIO()
    save(NAMED, draw, rows, stream, format="svg", transparent=True, metadata=dict.fromkeys(METADATA))
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'id="switch:(\w+):([^"]*)"', r'data-\1="\2"', text)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r'(<svg [^>]*?)width="[^"]*" height="[^"]*"', r'\1aria-hidden="true"', text, count=1)
    for variable, colour in NAMED.items():
        text = text.replace(colour, f"var(--{variable})")
    return text


def save(theme: Theme, draw: Callable[[Theme, Sequence[T]], Any], rows: Sequence[T], to: Any, **options: Any) -> None:
    """Draw a plot and save it; ``options`` are those of ``Figure.savefig``."""
    import matplotlib

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "report",  # the same results give the same file
        "text.parse_math": False,
        "font.size": 8,
        "text.color": theme["ink"],
        "axes.edgecolor": theme["line"],
        "axes.labelcolor": theme["muted"],
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": theme["line"],
        "ytick.color": theme["line"],
        "xtick.labelcolor": theme["muted"],
        "ytick.labelcolor": theme["ink"],
        "grid.color": theme["line"],
        "grid.linewidth": 0.6,
        "legend.frameon": False,
    }
    with matplotlib.rc_context(style):
        draw(theme, rows).savefig(to, **options)


def new_figure(height: float, **options: Any) -> tuple[Any, Any]:
    """Return a figure of ``height`` inches and its axes; ``options`` are those of ``Figure.subplots``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(**options)


def mark(artists: Iterable[Any], kind: str, name: str) -> None:
    """Make artists known to the page's switch of that kind and name."""
    for artist in artists:
        artist.set_gid(f"switch:{kind}:{name}")


def row_axes(axes: Any, names: Sequence[str], kind: str | None = None) -> None:
    """Make ``axes`` a chart of horizontal bars, one row a name, the first on top."""
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.grid(axis="x")
    if kind:
        for label, name in zip(axes.get_yticklabels(), names, strict=True):
            mark([label], kind, name)


def short(name: str, length: int = 30) -> str:
    """Cut the middle out of a long name."""
    return name if len(name) <= length else f"{name[: length // 2 - 1]}…{name[-length // 2 :]}"


def bar(theme: Theme, axes: Any, y: float, width: float, colour: str, left: float = 0, height: float = 0.62) -> Any:
    """Draw a bar of the row ``y``, set apart from its neighbours by a thin edge."""
    return axes.barh(y, width, height, left, color=theme[colour], edgecolor=theme["surface"], linewidth=0.5)


def note(axes: Any, x: float, y: float, text: str, **options: Any) -> Any:
    """Write a text to the right of a bar that ends at ``x``."""
    return axes.annotate(text, (x, y), (4, 0), textcoords="offset points", va="center", **options)


def legend(figure: Any, theme: Theme, entries: dict[str, str]) -> None:
    """Put a legend of colours above the plot."""
    from matplotlib.patches import Patch

    handles = [Patch(color=theme[colour], label=short(label)) for label, colour in entries.items()]
    columns = len(handles) if sum(len(label) + 6 for label in entries) < 90 else 4
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, handlelength=0.9, handleheight=0.9)


def series(names: Iterable[str]) -> dict[str, str]:
    """Return a colour for each name, in their order."""
    return {name: f"series-{i % SERIES}" for i, name in enumerate(dict.fromkeys(names))}
