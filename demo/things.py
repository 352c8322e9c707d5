"""The 24 things of the demo's pictures, each drawn from parts so that it is recognised at 36 pixels."""

from __future__ import annotations

import math
from collections.abc import Callable

from demo.pen import DARK, GLASS, LIGHT, SKIN, Pen


def _circle(p: Pen) -> None:
    p.oval(0, 0, 0.95, 0.95)


def _square(p: Pen) -> None:
    p.rect(-0.85, -0.85, 0.85, 0.85)


def _triangle(p: Pen) -> None:
    p.poly([(0, -0.95), (1, 0.8), (-1, 0.8)])


def _star(p: Pen) -> None:
    corners = [(1.0 if i % 2 == 0 else 0.42, math.pi * i / 5) for i in range(10)]
    p.poly([(r * math.sin(a), -r * math.cos(a) + 0.05) for r, a in corners])


def _heart(p: Pen) -> None:
    p.oval(-0.46, -0.38, 0.5, 0.5)
    p.oval(0.46, -0.38, 0.5, 0.5)
    p.poly([(-0.9, -0.16), (0, -0.3), (0.9, -0.16), (0, 0.95)])


def _ring(p: Pen) -> None:
    p.ring(0, 0, 0.95, 0.36)


def _fish(p: Pen) -> None:
    p.poly([(0.35, 0), (1, -0.55), (0.85, 0), (1, 0.55)], p.shade)
    p.poly([(-0.3, -0.4), (0.2, -0.85), (0.35, -0.3)], p.shade)
    p.oval(-0.2, 0, 0.78, 0.52)
    p.poly([(-0.1, 0.1), (0.3, 0.4), (0.3, 0.0)], p.shade)
    p.oval(-0.6, -0.12, 0.15, 0.15, LIGHT)
    p.oval(-0.63, -0.12, 0.07, 0.07, DARK)


def _bird(p: Pen) -> None:
    p.poly([(0.4, 0.1), (1, -0.25), (0.95, 0.25)], p.shade)
    p.line([(-0.1, 0.5), (-0.1, 0.9)], 0.1, (225, 150, 40))
    p.line([(0.2, 0.5), (0.2, 0.9)], 0.1, (225, 150, 40))
    p.poly([(-0.75, -0.5), (-1, -0.32), (-0.7, -0.22)], (240, 165, 40))
    p.oval(0.05, 0.15, 0.62, 0.48)
    p.oval(-0.48, -0.38, 0.38, 0.38)
    p.poly([(-0.2, 0.0), (0.6, -0.1), (0.2, 0.45)], p.shade)
    p.oval(-0.58, -0.46, 0.11, 0.11, LIGHT)
    p.oval(-0.6, -0.46, 0.06, 0.06, DARK)


def _cat(p: Pen) -> None:
    p.line([(0.45, 0.75), (0.85, 0.6), (0.85, 0.05)], 0.2, p.shade)
    p.oval(0, 0.5, 0.55, 0.48)
    p.poly([(-0.62, -0.3), (-0.58, -1), (-0.08, -0.62)], p.shade)
    p.poly([(0.62, -0.3), (0.58, -1), (0.08, -0.62)], p.shade)
    p.oval(0, -0.28, 0.62, 0.5)
    for side in (-1, 1):
        p.oval(0.26 * side, -0.34, 0.13, 0.15, LIGHT)
        p.oval(0.26 * side, -0.34, 0.06, 0.11, DARK)
        p.oval(0.25 * side, 0.88, 0.2, 0.12, p.shade)
    p.poly([(-0.1, -0.14), (0.1, -0.14), (0, -0.02)], (240, 130, 150))


def _butterfly(p: Pen) -> None:
    for side in (-1, 1):
        p.oval(0.52 * side, -0.38, 0.46, 0.48)
        p.oval(0.42 * side, 0.45, 0.36, 0.4, p.shade)
        p.oval(0.55 * side, -0.38, 0.18, 0.2, LIGHT)
        p.line([(0, -0.6), (0.25 * side, -0.95)], 0.07, DARK)
    p.oval(0, 0, 0.12, 0.68, DARK)


def _snail(p: Pen) -> None:
    p.line([(-0.75, 0.2), (-0.9, -0.3)], 0.09, SKIN)
    p.line([(-0.6, 0.2), (-0.55, -0.3)], 0.09, SKIN)
    p.poly([(-0.9, 0.75), (-0.9, 0.2), (-0.5, 0.2), (-0.3, 0.45), (1, 0.75)], SKIN)
    p.oval(-0.68, 0.25, 0.24, 0.22, SKIN)
    p.oval(0.2, 0.0, 0.62, 0.62)
    p.ring(0.2, 0.0, 0.42, 0.14, p.shade)
    p.oval(0.2, 0.0, 0.14, 0.14, p.shade)


def _turtle(p: Pen) -> None:
    skin = (150, 175, 95)
    p.oval(-0.8, 0.12, 0.2, 0.22, skin)
    p.rect(-0.55, 0.3, -0.25, 0.72, skin, 0.1)
    p.rect(0.25, 0.3, 0.55, 0.72, skin, 0.1)
    p.poly([(0.6, 0.2), (1, 0.42), (0.6, 0.42)], skin)
    p.pie(0, 0.35, 0.75, 180, 360)
    p.rect(-0.75, 0.28, 0.75, 0.45, p.shade, 0.06)
    p.poly([(-0.2, -0.2), (0.2, -0.2), (0.3, 0.1), (0, 0.22), (-0.3, 0.1)], p.shade)
    p.oval(-0.86, 0.06, 0.06, 0.06, DARK)


def _wheel(p: Pen, x: float, y: float, radius: float) -> None:
    p.oval(x, y, radius, radius, DARK)
    p.oval(x, y, radius * 0.45, radius * 0.45, (200, 200, 205))


def _car(p: Pen) -> None:
    p.poly([(-0.6, 0.05), (-0.35, -0.5), (0.35, -0.5), (0.65, 0.05)])
    p.rect(-1, -0.02, 1, 0.45, None, 0.14)
    p.poly([(-0.45, 0.0), (-0.27, -0.38), (-0.04, -0.38), (-0.04, 0.0)], GLASS)
    p.poly([(0.06, 0.0), (0.06, -0.38), (0.28, -0.38), (0.48, 0.0)], GLASS)
    p.rect(-1, 0.3, 1, 0.45, p.shade, 0.07)
    _wheel(p, -0.52, 0.45, 0.25)
    _wheel(p, 0.52, 0.45, 0.25)


def _bus(p: Pen) -> None:
    p.rect(-1, -0.7, 1, 0.55, None, 0.12)
    p.rect(-1, 0.2, 1, 0.34, p.shade)
    for x in (-0.88, -0.42, 0.04):
        p.rect(x, -0.5, x + 0.36, 0.0, GLASS)
    p.rect(0.52, -0.5, 0.86, 0.5, GLASS)
    _wheel(p, -0.55, 0.55, 0.22)
    _wheel(p, 0.35, 0.55, 0.22)


def _boat(p: Pen) -> None:
    p.line([(0, -0.95), (0, 0.4)], 0.1, (110, 75, 45))
    p.poly([(0.1, -0.85), (0.85, 0.2), (0.1, 0.2)], LIGHT)
    p.poly([(-0.1, -0.6), (-0.1, 0.2), (-0.65, 0.2)], p.shade)
    p.poly([(-1, 0.32), (1, 0.32), (0.65, 0.88), (-0.65, 0.88)])


def _rocket(p: Pen) -> None:
    p.poly([(-0.22, 0.55), (0.22, 0.55), (0, 1)], (250, 170, 40))
    p.poly([(-0.3, 0.1), (-0.7, 0.7), (-0.25, 0.6)], p.shade)
    p.poly([(0.3, 0.1), (0.7, 0.7), (0.25, 0.6)], p.shade)
    p.oval(0, -0.1, 0.36, 0.75)
    p.poly([(-0.24, -0.65), (0, -1), (0.24, -0.65)], p.shade)
    p.rect(-0.28, 0.4, 0.28, 0.62, p.shade)
    p.oval(0, -0.25, 0.18, 0.18, GLASS)


def _balloon(p: Pen) -> None:
    p.line([(-0.4, 0.2), (-0.2, 0.65)], 0.05, DARK)
    p.line([(0.4, 0.2), (0.2, 0.65)], 0.05, DARK)
    p.oval(0, -0.3, 0.7, 0.68)
    p.poly([(-0.55, 0.1), (0.55, 0.1), (0.2, 0.5), (-0.2, 0.5)])
    p.oval(0, -0.3, 0.28, 0.68, p.shade)
    p.rect(-0.24, 0.62, 0.24, 0.98, (150, 105, 60), 0.06)


def _tree(p: Pen) -> None:
    p.rect(-0.14, 0.2, 0.14, 1, (115, 75, 45))
    for x, y, r in ((-0.42, 0.0, 0.42), (0.42, 0.0, 0.42), (0, -0.45, 0.52), (0, 0.05, 0.45)):
        p.oval(x, y, r, r)
    for x, y in ((-0.4, 0.0), (0.35, -0.1), (0.0, -0.55)):
        p.oval(x, y, 0.13, 0.13, p.shade)


def _flower(p: Pen) -> None:
    p.line([(0, 0), (0, 0.95)], 0.12, (45, 130, 60))
    p.oval(0.3, 0.65, 0.28, 0.12, (45, 130, 60))
    p.oval(-0.3, 0.75, 0.28, 0.12, (45, 130, 60))
    for i in range(6):
        a = math.pi * i / 3
        p.oval(0.4 * math.cos(a), -0.3 + 0.4 * math.sin(a), 0.27, 0.27)
    p.oval(0, -0.3, 0.24, 0.24, (250, 225, 110) if p.main[2] > 80 or p.main[0] < 200 else (120, 70, 40))


def _cactus(p: Pen) -> None:
    p.line([(-0.62, -0.3), (-0.62, 0.15), (0, 0.15)], 0.26)
    p.line([(0.62, -0.5), (0.62, -0.02), (0, -0.02)], 0.26)
    p.rect(-0.24, -0.95, 0.24, 0.65, None, 0.24)
    p.line([(0, -0.75), (0, 0.5)], 0.06, p.shade)
    p.poly([(-0.5, 0.5), (0.5, 0.5), (0.36, 1), (-0.36, 1)], (190, 100, 60))


def _mushroom(p: Pen) -> None:
    p.rect(-0.26, -0.1, 0.26, 0.92, (240, 228, 205), 0.16)
    p.pie(0, 0.1, 0.95, 180, 360)
    for x, y, r in ((-0.5, -0.15, 0.15), (0.05, -0.5, 0.17), (0.52, -0.18, 0.14)):
        p.oval(x, y, r, r, LIGHT if sum(p.main) < 660 else p.shade)


def _house(p: Pen) -> None:
    p.rect(0.4, -0.85, 0.62, -0.3, DARK)
    p.rect(-0.75, -0.15, 0.75, 0.95)
    p.poly([(-1, -0.1), (0, -0.95), (1, -0.1)], p.shade)
    p.rect(-0.5, 0.1, -0.1, 0.5, (255, 235, 150))
    p.rect(0.15, 0.25, 0.5, 0.95, (100, 65, 45))


def _castle(p: Pen) -> None:
    p.rect(-0.55, -0.2, 0.55, 0.92)
    for x in (-0.45, -0.1, 0.25):
        p.rect(x, -0.38, x + 0.2, -0.1)
    for x in (-0.98, 0.5):
        p.rect(x, -0.4, x + 0.48, 0.92, p.shade)
        p.poly([(x - 0.02, -0.4), (x + 0.24, -0.98), (x + 0.5, -0.4)])
        p.rect(x + 0.17, -0.15, x + 0.31, 0.15, (255, 235, 150))
    p.rect(-0.22, 0.45, 0.22, 0.92, DARK)
    p.pie(0, 0.46, 0.22, 180, 360, DARK)


def _lighthouse(p: Pen) -> None:
    p.poly([(-0.3, -0.5), (0.3, -0.5), (0.48, 0.95), (-0.48, 0.95)])
    p.poly([(-0.35, -0.1), (0.35, -0.1), (0.385, 0.2), (-0.385, 0.2)], LIGHT if sum(p.main) < 660 else p.shade)
    p.poly([(-0.42, 0.48), (0.42, 0.48), (0.455, 0.76), (-0.455, 0.76)], LIGHT if sum(p.main) < 660 else p.shade)
    p.rect(-0.4, -0.55, 0.4, -0.45, DARK)
    p.rect(-0.22, -0.8, 0.22, -0.55, (255, 235, 120))
    p.poly([(-0.3, -0.78), (0, -1), (0.3, -0.78)], p.shade)


THINGS: dict[str, Callable[[Pen], None]] = {
    name[1:]: draw
    for name, draw in dict(globals()).items()
    if name.startswith("_") and callable(draw) and name[1:2].isalpha() and name != "_wheel"
}
