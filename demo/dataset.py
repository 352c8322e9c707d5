"""Scenes with captions, drawn from a grammar: a pure function of (seed, index).

A scene is one thing, or two with a relation, in a colour, a size and before a background. Its caption says just what is
there. One tenth of the combinations (thing, colour, background) is held out of training by a hash.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from PIL import Image, ImageDraw

from demo.backgrounds import BACKGROUNDS, SCENES
from demo.pen import Colour, Pen
from demo.things import THINGS

SIZE = 128  # pixels of a picture's side
OVERSAMPLE = 4  # drawn this many times larger, then averaged: anti-aliasing
COLOURS: dict[str, Colour] = {
    "red": (222, 38, 38),
    "orange": (248, 136, 24),
    "yellow": (250, 218, 32),
    "green": (34, 146, 62),
    "blue": (38, 84, 222),
    "purple": (134, 52, 186),
    "pink": (250, 134, 188),
    "brown": (122, 74, 40),
    "black": (24, 24, 28),
    "white": (250, 250, 250),
}
RELATIONS = ("left of", "above", "on")
RADII = {"small": 22.0, "": 33.0, "big": 46.0}  # half of a lone thing's side in pixels
INVISIBLE = {("black", "night"), ("white", "snow")}  # a colour that is lost before its background
PLACES = {
    "sky": ("in the sky", "in the sky", "among the clouds"),
    "meadow": ("on a meadow", "in a meadow", "on the grass"),
    "beach": ("on the beach", "at the beach", "on a beach"),
    "night": ("at night", "in the night", "under the stars"),
    "snow": ("in the snow", "in the snow", "in winter"),
    "plain": ("on {} background", "on {} background", "against {} background"),
}
FRAMES = ("{}", "{}", "{}", "{}", "a picture of {}", "a drawing of {}")
Subset = Literal["train", "held-out"]


@dataclass(frozen=True)
class Thing:
    """One thing of a scene. ``centre`` and ``radius`` are in pixels; ``tone`` is the colour as drawn."""

    name: str
    colour: str
    size: str
    centre: tuple[float, float]
    radius: float
    tone: Colour
    flip: bool


@dataclass(frozen=True)
class Scene:
    """What a picture shows, and the caption that says it. ``things[0]`` is ``relation`` ``things[1]``."""

    things: tuple[Thing, ...]
    relation: str | None
    background: str
    background_colour: str | None  # of a plain background
    background_tone: Colour
    caption: str
    seed: str


def is_held_out(thing: str, colour: str, background: str) -> bool:
    """Tell whether the combination is never trained on."""
    return hashlib.sha256(f"{thing}/{colour}/{background}/1".encode()).digest()[0] < 26


def _tone(colour: str, rng: random.Random) -> Colour:
    return tuple(min(255, max(0, c + rng.randint(-7, 7))) for c in COLOURS[colour])  # type: ignore[return-value]


@lru_cache
def extent(name: str) -> tuple[float, float]:
    """Return the top and the bottom of a thing's drawing in units of its radius, y down."""
    image = Image.new("L", (256, 256))
    THINGS[name](Pen(_White(image), (128, 128), 100, (1, 1, 1)))
    _, top, _, bottom = image.getbbox()
    return (top - 128) / 100, (bottom - 128) / 100


class _White(ImageDraw.ImageDraw):
    """Draws every part in white, to find out where a thing has parts."""

    def _getink(self, ink, fill=None):  # type: ignore[no-untyped-def]
        return (None if ink is None else 255), (None if fill is None else 255)


def _combination(rng: random.Random, held_out: bool, background: str, other: str | None) -> tuple[str, str]:
    """Draw a thing and a colour that are seen before ``background`` and differ from the background's colour."""
    while True:
        name, colour = rng.choice(sorted(THINGS)), rng.choice(sorted(COLOURS))
        visible = colour != other and (colour, background) not in INVISIBLE
        if visible and is_held_out(name, colour, background) == held_out:
            return name, colour


def _lone(rng: random.Random, size: str, background: str) -> tuple[float, float, float]:
    """Place one thing: x, y and radius in pixels."""
    radius = RADII[size] * rng.uniform(0.94, 1.06)
    room = SIZE / 2 - radius - 2
    x, y = SIZE / 2 + rng.uniform(-0.6, 0.6) * room, SIZE / 2 + rng.uniform(-0.6, 0.6) * room
    if background in ("meadow", "beach", "snow"):
        y = min(rng.uniform(100, 118) - radius, SIZE - 2 - radius)
    return x, y, radius


def _pair(rng: random.Random, relation: str, names: tuple[str, str]) -> list[tuple[float, float, float]]:
    """Place two things in a relation: x, y and radius in pixels for each."""
    radius = rng.uniform(25, 28)
    if relation == "left of":
        y = rng.uniform(58, 84)
        return [(rng.uniform(30, 38), y, radius), (rng.uniform(90, 98), y + rng.uniform(-3, 3), radius)]
    x = rng.uniform(48, 80)
    below = rng.uniform(92, 98)
    shift = rng.uniform(-3, 3)
    if relation == "above":
        return [(x + shift, rng.uniform(31, 36), radius), (x, below, radius)]
    top, bottom = below + extent(names[1])[0] * radius, extent(names[0])[1] * radius
    return [(x + shift, top - bottom + 2, radius), (x, below, radius)]


def _with_article(*words: str) -> str:
    noun = " ".join(word for word in words if word)
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _caption(rng: random.Random, nouns: list[str], relation: str | None, place: str) -> str:
    what = nouns[0] if relation is None else f"{nouns[0]} {relation} {nouns[1]}"
    return rng.choice(FRAMES).format(f"{what} {place}")


def make_scene(
    index: int, seed: int = 0, subset: Subset = "train", pairs: float = 0.35, plain: float = 0.35, sized: float = 0.5
) -> Scene:
    """Return scene ``index`` of the stream that ``seed`` starts.

    Args:
        index: number of the scene; neighbours are independent.
        seed: stream; training and judging use different ones.
        subset: "train" never holds a held-out combination, in "held-out" the first thing always is one.
        pairs: share of scenes with two things.
        plain: share of scenes before a plain background; the other five share the rest equally.
        sized: share of lone things whose size is said (small, big) and not the middle one.
    """
    rng = random.Random(f"{seed}/{index}/{subset}")  # noqa: S311 - a picture, not a secret
    background = "plain" if rng.random() < plain else rng.choice(sorted(SCENES))
    back_colour = rng.choice(sorted(COLOURS)) if background == "plain" else None
    relation = rng.choice(RELATIONS) if rng.random() < pairs else None
    first = _combination(rng, subset == "held-out", background, back_colour)
    chosen = [first]
    while relation is not None and len(chosen) < 2:  # two that could be told apart by nothing are no pair
        second = _combination(rng, False, background, back_colour)
        chosen += [second] if second[0] != first[0] and second[1] != first[1] else []
    size = rng.choice(("small", "big")) if relation is None and rng.random() < sized else ""
    lone = relation is None
    spots = [_lone(rng, size, background)] if lone else _pair(rng, relation, (chosen[0][0], chosen[1][0]))
    things = tuple(
        Thing(name, colour, size, (x, y), radius, _tone(colour, rng), rng.random() < 0.5)
        for (name, colour), (x, y, radius) in zip(chosen, spots, strict=True)
    )
    nouns = [_with_article(thing.size, thing.colour, thing.name) for thing in things]
    place = rng.choice(PLACES[background]).format(_with_article(back_colour or "plain"))
    caption = _caption(rng, nouns, relation, place)
    tone = _tone(back_colour, rng) if back_colour is not None else (0, 0, 0)
    return Scene(things, relation, background, back_colour, tone, caption, f"{seed}/{index}/{subset}/background")


def render(scene: Scene, size: int = SIZE) -> Image.Image:
    """Draw the scene as an RGB picture of ``size`` x ``size`` pixels."""
    side = size * OVERSAMPLE
    image = Image.new("RGB", (side, side), scene.background_tone)
    if scene.background in SCENES:
        SCENES[scene.background](image, random.Random(scene.seed))  # noqa: S311
    draw, unit = ImageDraw.Draw(image), side / SIZE
    for thing in scene.things[::-1]:  # what stands on something is drawn over it
        centre = (thing.centre[0] * unit, thing.centre[1] * unit)
        THINGS[thing.name](Pen(draw, centre, thing.radius * unit, thing.tone, thing.flip))
    return image.reduce(OVERSAMPLE)


def vocabulary() -> list[str]:
    """Return every word that a caption can hold, sorted."""
    text = [*THINGS, *COLOURS, *BACKGROUNDS, *RELATIONS, *RADII, *FRAMES, "a an with of and"]
    text += [place for places in PLACES.values() for place in places]
    return sorted({word for words in text for word in words.replace("{}", " ").split()})
