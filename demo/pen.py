"""A pen that draws parts of a thing in the thing's own unit square, on a picture of any size."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

LIGHT, DARK, GLASS, SKIN = (245, 245, 240), (45, 45, 55), (190, 225, 245), (235, 205, 165)


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """Return ``a`` moved towards ``b`` by ``share`` (0 to 1), per channel 0 to 255."""
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


class Pen:
    """Draws in coordinates from -1 to 1 (x to the right, y down) around a centre.

    ``main`` is the colour that the caption names, ``shade`` a second tone of it for parts: darker, and lighter where
    the main colour is almost black and darker would not show.
    """

    def __init__(self, draw: ImageDraw.ImageDraw, centre: Point, radius: float, main: Colour, flip: bool = False):
        self._draw, self._centre, self._radius, self._sign = draw, centre, radius, -1 if flip else 1
        self.main = main
        self.shade = mix(main, (255, 255, 255), 0.22) if sum(main) < 150 else mix(main, (0, 0, 0), 0.28)

    def _at(self, x: float, y: float) -> Point:
        return self._centre[0] + self._sign * x * self._radius, self._centre[1] + y * self._radius

    def _box(self, x0: float, y0: float, x1: float, y1: float) -> list[Point]:
        (ax, ay), (bx, by) = self._at(x0, y0), self._at(x1, y1)
        return [(min(ax, bx), ay), (max(ax, bx), by)]

    def oval(self, x: float, y: float, rx: float, ry: float, fill: Colour | None = None) -> None:
        """Fill the ellipse with centre (x, y) and radii (rx, ry)."""
        self._draw.ellipse(self._box(x - rx, y - ry, x + rx, y + ry), fill=fill if fill is not None else self.main)

    def rect(self, x0: float, y0: float, x1: float, y1: float, fill: Colour | None = None, rounded: float = 0) -> None:
        """Fill the rectangle from (x0, y0) to (x1, y1), its corners ``rounded`` by that radius."""
        fill = fill if fill is not None else self.main
        self._draw.rounded_rectangle(self._box(x0, y0, x1, y1), rounded * self._radius, fill=fill)

    def poly(self, points: Sequence[Point], fill: Colour | None = None) -> None:
        """Fill the polygon through ``points``."""
        self._draw.polygon([self._at(*p) for p in points], fill=fill if fill is not None else self.main)

    def line(self, points: Sequence[Point], width: float, fill: Colour | None = None) -> None:
        """Draw a line of ``width`` through ``points``, with round joints and ends."""
        fill = fill if fill is not None else self.main
        at = [self._at(*p) for p in points]
        self._draw.line(at, fill=fill, width=max(1, round(width * self._radius)), joint="curve")
        half = width * self._radius / 2
        for x, y in (at[0], at[-1]):
            self._draw.ellipse([x - half, y - half, x + half, y + half], fill=fill)

    def ring(self, x: float, y: float, radius: float, width: float, fill: Colour | None = None) -> None:
        """Draw a circle's rim, ``width`` wide, with the outer ``radius``."""
        fill = fill if fill is not None else self.main
        box = self._box(x - radius, y - radius, x + radius, y + radius)
        self._draw.ellipse(box, outline=fill, width=max(1, round(width * self._radius)))

    def pie(self, x: float, y: float, radius: float, start: float, end: float, fill: Colour | None = None) -> None:
        """Fill the slice of a circle from ``start`` to ``end`` degrees (0 is right, 90 is down)."""
        steps = [start + (end - start) * i / 24 for i in range(25)]
        rim = [(x + radius * math.cos(math.radians(a)), y + radius * math.sin(math.radians(a))) for a in steps]
        self.poly(rim if end - start == 180 else [(x, y), *rim], fill)
