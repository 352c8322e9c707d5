"""A 3x3 convolution of a picture that was doubled, as four 2x2 convolutions of the picture itself.

Pixels of the doubled picture are equal in fours, so weights that meet the same pixel are added up beforehand: 16
products for four pixels of the result instead of 36. Its even and odd rows and columns are four phases, each with
weights of its own.
"""

from __future__ import annotations

from itertools import product

import tvm.tirx.script.builder.ir as T
from tvm import tirx

from compiler.kernels.conv2d import ConvShape
from compiler.kernels.register_tile import Machine
from compiler.kernels.tir import Vectors, argument, prim_func

PHASES = 2  # in each direction
PHASED = 16 / 36  # of the products are left
TAPS = (((0,), (1, 2)), ((0, 1), (2,)))  # by phase, and tap of two: the taps of three that meet the same pixel


def has_phases(shape: ConvShape) -> bool:
    """Tell whether the convolution is one of a doubled picture that keeps its size."""
    return (shape.upsample, shape.kernel, shape.stride, shape.padding) == (PHASES, (3, 3), (1, 1), (1, 1, 1, 1))


def add_taps(panels: int, inputs: int, machine: Machine) -> tirx.PrimFunc:
    """Return the packing of panels [panels, 9 x inputs, panel] as those of all phases, [4 x panels, 4 x inputs, panel].

    The panels of a phase (row, column) follow each other, and so do the inputs of a tap (row, column).
    """
    v = Vectors(machine.lanes)

    def body() -> None:
        weight = argument("panels", (panels, 9 * inputs, machine.panel))
        added = argument("phases", (PHASES**2 * panels, 4 * inputs, machine.panel))
        with T.parallel(panels) as panel, T.serial(inputs) as k:
            for y, x, row, column in product(range(2), repeat=4):
                taps = [3 * i + j for i in TAPS[y][row] for j in TAPS[x][column]]
                for c in range(0, machine.panel, machine.lanes):
                    total = v.load(weight, panel, taps[0] * inputs + k, c)
                    for tap in taps[1:]:
                        total = total + v.load(weight, panel, tap * inputs + k, c)
                    v.store(added, total, (PHASES * y + x) * panels + panel, (2 * row + column) * inputs + k, c)

    return prim_func(body)
