"""Pictures of the report: read from beside the results, compared, and embedded."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from benchmarks import schema
from benchmarks.report_tables import Unit, number
from benchmarks.results import decibels

GAIN = 8  # differences are multiplied by it


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI, or an empty one and the reason. Switches find it by ``data``. Size in pixels."""

    label: str
    note: str
    uri: str
    reason: str = ""
    data: dict[str, str] = field(default_factory=dict)
    size: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Grid:
    """Pictures side by side under a caption."""

    caption: str
    pictures: list[Picture]
    kind: Literal["grid"] = "grid"


def read_picture(base: Path, name: str | None) -> Image.Image | None:
    """Return the RGB picture at ``base / name``, or None where there is none that can be read."""
    if name is None:
        return None
    try:
        with Image.open(base / name) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # what Pillow raises for broken files
        return None


def difference(image: Image.Image, reference: Image.Image) -> Image.Image:
    """Return how far two pictures of one size are apart: ``GAIN`` times the absolute difference, cut at white."""
    apart = np.abs(np.asarray(image, np.int16) - np.asarray(reference, np.int16))
    return Image.fromarray(np.minimum(apart * GAIN, 255).astype(np.uint8))


def backend_grids(backends: Sequence[schema.Backend], base: Path) -> list[Grid]:
    """Return the backends' pictures, and their differences to the first one that can be read."""
    shown = [(backend, read_picture(base, backend.picture)) for backend in backends if backend.picture is not None]
    unit = Unit.of(backend.total_seconds for backend, _ in shown)
    pictures = [
        _picture(b.name, _note(unit, b.total_seconds, b.psnr), image, f"{b.picture} is missing", {"backend": b.name})
        for b, image in shown
    ]
    grids = [Grid("Pictures of one prompt and seed", pictures)] if pictures else []
    found = [(backend, image) for backend, image in shown if image is not None]
    if len(found) > 1:
        (first, reference), *others = found
        apart = [_difference(backend, image, reference) for backend, image in others]
        grids.append(Grid(f"Differences to {first.name}, {GAIN} times amplified", apart))
    return grids


def tome_grids(sweep: Sequence[schema.TomeRow], base: Path) -> list[Grid]:
    """Return the sweep's pictures, a grid for each backend and attention."""
    unit = Unit.of(row.total_seconds for row in sweep)
    grids: dict[tuple[str, str], list[Picture]] = {}
    for row in sweep:
        if row.picture is not None:
            note = _note(unit, row.total_seconds, row.psnr_to_plain)
            image, reason = read_picture(base, row.picture), f"{row.picture} is missing"
            picture = _picture(f"ratio {number(row.ratio)}", note, image, reason, {"backend": row.name})
            grids.setdefault((row.name, row.attention), []).append(picture)
    return [Grid(f"{name}, {attention} attention", pictures) for (name, attention), pictures in grids.items()]


def _difference(backend: schema.Backend, image: Image.Image, reference: Image.Image) -> Picture:
    if image.size != reference.size:
        return _picture(backend.name, "", None, "of another size", {"backend": backend.name})
    apart = difference(image, reference)
    largest = int(np.abs(np.asarray(image, np.int16) - np.asarray(reference, np.int16)).max())
    return _picture(backend.name, f"at most {largest} of 255", apart, "", {"backend": backend.name})


def _picture(label: str, note: str, image: Image.Image | None, reason: str, data: dict[str, str]) -> Picture:
    if image is None:
        return Picture(label, note, "", reason, data)
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    uri = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
    return Picture(label, note, uri, "", data, image.size)


def _note(unit: Unit, seconds: Sequence[float], psnr: float | None) -> str:
    quality = decibels(psnr)
    quality += " dB" if quality[-1:].isdigit() else ""
    time = f"{unit.cell(seconds).text} {unit.name}" if seconds else ""
    return ", ".join(part for part in (time, quality) if part)
