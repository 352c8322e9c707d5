"""Direct convolution, NHWC, float32, weights packed in panels [CO / panel][KH * KW * CI][panel].

The input is first copied into a zero-padded buffer (a test in the inner loop costs more than the copy); then a tile of
pixels of one row x one panel stays in registers over the whole reduction. At small pictures the tasks are panels, so
that weights stream once; at large ones they are rows of the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import tvm.tirx.script.builder.ir as T
from tvm import tirx

from compiler.kernels.epilogue import Epilogue
from compiler.kernels.register_tile import UNROLL, Machine, RegisterTile
from compiler.kernels.tiling import choice
from compiler.kernels.tir import Value, Vectors, argument, local, prim_func, steps, tile_size, tiles

SMALL_ROWS = 32  # rows of the picture up to which tasks are panels
ENOUGH_PANELS = 8


@dataclass(frozen=True)
class Tiling:
    """Pixels of a register tile at most, and whether a task is a panel (1) or a row of the picture (2)."""

    pixels: int = choice(0, 4, 6, 8, 10, 14)
    task: int = choice(0, 1, 2)


@dataclass(frozen=True)
class ConvShape:
    """Batch, input height, width and channels, output channels, kernel, stride, padding (top, left, bottom, right).

    Where ``upsample`` is above 1, the input in memory is that many times smaller in both directions, and height and
    width are those after nearest upsampling.
    """

    batch: int
    height: int
    width: int
    inputs: int
    outputs: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    upsample: int = 1

    @property
    def pixels(self) -> int:
        """Pixels of the result, over all pictures."""
        return self.batch * math.prod(self.result)

    @property
    def multiplies(self) -> int:
        """Multiply-adds of the direct convolution: the unit of every kernel's estimated cost."""
        return self.pixels * math.prod(self.kernel) * self.inputs * self.outputs

    @property
    def is_multiply(self) -> bool:
        """Whether each pixel of the result comes of one pixel of the input."""
        return self.kernel == self.stride == (1, 1) and not any(self.padding)

    @property
    def padded(self) -> tuple[int, ...]:
        """Height and width with padding."""
        top, left, bottom, right = self.padding
        return self.height + top + bottom, self.width + left + right

    @property
    def result(self) -> tuple[int, ...]:
        """Height and width of the result."""
        return tuple(
            (extent - size) // step + 1
            for extent, size, step in zip(self.padded, self.kernel, self.stride, strict=True)
        )


class _Conv2d:
    def __init__(self, shape: ConvShape, operand_rows: Sequence[int], machine: Machine, tiling: Tiling) -> None:
        self.shape, self.machine, self.tiling = shape, machine, tiling
        self.rows, self.columns = shape.result
        self.panels = -(-shape.outputs // machine.panel)
        self.tile = tile_size(self.columns, tiling.pixels or machine.rows)
        self.epilogue = Epilogue(operand_rows, shape.pixels, shape.outputs)

    def body(self) -> None:
        """Declare the arguments, pad, and share the rows or the panels among the cores."""
        s = self.shape
        taps = s.kernel[0] * s.kernel[1]
        self.x = argument("x", (s.batch, s.height, s.width, s.inputs))
        self.w = argument("w", (self.panels, taps * s.inputs, self.machine.panel))
        self.epilogue.declare()
        if any(s.padding):
            self._pad()
        by_panel = self.panels >= ENOUGH_PANELS and self.rows <= SMALL_ROWS
        by_panel = by_panel if self.tiling.task == 0 else self.tiling.task == 1
        rows = s.batch * self.rows
        with T.parallel(self.panels if by_panel else rows) as outer:
            with T.serial(rows if by_panel else self.panels) as inner:
                panel, row = (outer, inner) if by_panel else (inner, outer)
                tiles(self.columns, self.tile, lambda x, count: self._pixels(panel, row, x, count))

    def _pad(self) -> None:
        s, (height, width) = self.shape, self.shape.padded
        top, left, _, _ = s.padding
        lanes = max(d for d in range(1, self.machine.lanes + 1) if s.inputs % d == 0)
        v = Vectors(lanes)
        padded = T.alloc_buffer((s.batch, height, width, s.inputs), "float32", layout=None)
        with T.parallel(s.batch * height) as row:
            n, y = T.floordiv(row, height), T.floormod(row, height)
            with T.serial(width) as x:
                inside = T.And(T.And(y >= top, y < top + s.height), T.And(x >= left, x < left + s.width))
                with T.serial(s.inputs // lanes) as c:
                    value = T.if_then_else(inside, v.load(self.x, n, y - top, x - left, c * lanes), v.all(0.0))
                    v.store(padded, value, n, y, x, c * lanes)
        self.x = padded

    def _pixels(self, panel: Value, row: Value, first: Value, count: int) -> None:
        """Compute ``count`` pixels of one row of the picture for one panel of channels."""
        s = self.shape
        registers = RegisterTile(self.machine, local(count, self.machine.panel))
        n, y = T.floordiv(row, self.rows), T.floormod(row, self.rows)
        registers.clear(count)
        with T.serial(s.kernel[0]) as kh:
            with T.serial(s.kernel[1]) as kw:

                def step(channel: Value) -> None:
                    tap = (kh * s.kernel[1] + kw) * s.inputs + channel
                    registers.multiply(
                        count,
                        lambda pixel: self.x[n, y * s.stride[0] + kh, (first + pixel) * s.stride[1] + kw, channel],
                        lambda c: registers.v.load(self.w, panel, tap, c),
                    )

                steps(s.inputs, UNROLL, step)
        start = row * self.columns + first
        registers.write(count, lambda pixel: start + pixel, panel, self.epilogue)


def conv2d(shape: ConvShape, operand_rows: Sequence[int], machine: Machine, tiling: Tiling = Tiling()) -> tirx.PrimFunc:
    """Return the convolution as a function of x [N, H, W, CI], packed w, the epilogue's operands and y [pixels, CO]."""
    return prim_func(_Conv2d(shape, operand_rows, machine, tiling).body)
