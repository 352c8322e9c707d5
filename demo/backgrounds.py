"""The six backgrounds of the demo's pictures: five scenes in soft colours, and a plain colour."""

from __future__ import annotations

import random
from collections.abc import Callable

from PIL import Image, ImageDraw

from demo.pen import Colour, mix

WHITE = (255, 255, 255)


def _bands(image: Image.Image, top: Colour, bottom: Colour, end: float) -> None:
    """Fill the upper ``end`` (0 to 1) of the picture with a gradient from ``top`` to ``bottom``."""
    height = round(image.height * end)
    column = Image.new("RGB", (1, height))
    column.putdata([mix(top, bottom, y / height) for y in range(height)])
    image.paste(column.resize((image.width, height)), (0, 0))


def _cloud(draw: ImageDraw.ImageDraw, x: float, y: float, size: float, fill: Colour) -> None:
    for dx, dy, r in ((-1, 0.1, 0.55), (0, -0.2, 0.8), (1, 0.1, 0.6)):
        draw.ellipse([x + (dx - r) * size, y + (dy - r) * size, x + (dx + r) * size, y + (dy + r) * size], fill=fill)


def _sky(image: Image.Image, rng: random.Random) -> None:
    _bands(image, (130, 195, 240), (205, 232, 250), 1.0)
    draw, unit = ImageDraw.Draw(image), image.width / 128
    for x, y in ((rng.uniform(10, 40), rng.uniform(14, 34)), (rng.uniform(85, 118), rng.uniform(84, 112))):
        _cloud(draw, x * unit, y * unit, rng.uniform(7, 11) * unit, (248, 251, 254))


def _meadow(image: Image.Image, rng: random.Random) -> None:
    _bands(image, (165, 215, 245), (220, 240, 250), 1.0)
    draw, unit = ImageDraw.Draw(image), image.width / 128
    y = rng.uniform(70, 80) * unit
    draw.ellipse([-40 * unit, y - 12 * unit, 100 * unit, y + 90 * unit], fill=(150, 208, 110))
    draw.rectangle([0, y, image.width, image.height], fill=(165, 218, 120))
    for _ in range(10):
        x, dy = rng.uniform(2, 124) * unit, rng.uniform(6, 44) * unit
        draw.line([x, y + dy, x + 1.5 * unit, y + dy - 4 * unit], fill=(120, 185, 85), width=round(1.5 * unit))


def _beach(image: Image.Image, rng: random.Random) -> None:
    _bands(image, (175, 225, 245), (225, 243, 250), 1.0)
    draw, unit = ImageDraw.Draw(image), image.width / 128
    y = rng.uniform(52, 60) * unit
    draw.rectangle([0, y, image.width, image.height], fill=(70, 175, 200))
    draw.rectangle([0, y + 18 * unit, image.width, image.height], fill=(240, 248, 248))
    draw.rectangle([0, y + 21 * unit, image.width, image.height], fill=(240, 220, 170))


def _night(image: Image.Image, rng: random.Random) -> None:
    _bands(image, (18, 22, 62), (48, 52, 110), 1.0)
    draw, unit = ImageDraw.Draw(image), image.width / 128
    for _ in range(14):
        x, y, r = rng.uniform(3, 125) * unit, rng.uniform(3, 120) * unit, rng.uniform(0.9, 1.5) * unit
        draw.ellipse([x - r, y - r, x + r, y + r], fill=(250, 245, 205))
    x, y, r = rng.uniform(98, 114) * unit, rng.uniform(12, 22) * unit, 9 * unit
    draw.ellipse([x - r, y - r, x + r, y + r], fill=(250, 240, 190))
    draw.ellipse([x - r - 4 * unit, y - r - unit, x + r - 5 * unit, y + r - 2 * unit], fill=(22, 26, 67))


def _snow(image: Image.Image, rng: random.Random) -> None:
    _bands(image, (170, 185, 208), (205, 215, 230), 1.0)
    draw, unit = ImageDraw.Draw(image), image.width / 128
    y = rng.uniform(74, 84) * unit
    draw.ellipse([30 * unit, y - 12 * unit, 170 * unit, y + 90 * unit], fill=(228, 235, 246))
    draw.rectangle([0, y, image.width, image.height], fill=(243, 247, 252))
    for _ in range(16):
        x, dy, r = rng.uniform(3, 125) * unit, rng.uniform(3, 70) * unit, rng.uniform(1.1, 1.7) * unit
        draw.ellipse([x - r, dy - r, x + r, dy + r], fill=WHITE)


SCENES: dict[str, Callable[[Image.Image, random.Random], None]] = {
    "sky": _sky,
    "meadow": _meadow,
    "beach": _beach,
    "night": _night,
    "snow": _snow,
}
BACKGROUNDS = (*SCENES, "plain")
