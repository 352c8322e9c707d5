"""Direct convolution to a few channels, NHWC, float32, weights packed as [CO][KH * KW][CI].

A picture's last layer has three or four channels, which would fill a tenth of a panel. So input channels sit in the
vector lanes instead: a tile of pixels of one row x all outputs stays in registers over the whole reduction, and its
lanes are added up at the end. Tasks are rows of the result; what lies outside of the picture is left out, not copied.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm.tirx.script.builder.ir as T
from tvm import tirx

from compiler.kernels.conv2d import ConvShape
from compiler.kernels.epilogue import Epilogue
from compiler.kernels.register_tile import Machine
from compiler.kernels.tir import Value, Vectors, argument, local, prim_func, tiles

MOST_OUTPUTS = 8
COST = 0.5  # of the multiply-adds of the direct convolution, whose panel is mostly padding


def accepts(shape: ConvShape, machine: Machine) -> bool:
    """Tell whether the kernel takes the convolution: few outputs, whole vectors of inputs."""
    return shape.outputs <= MOST_OUTPUTS and shape.inputs % machine.lanes == 0


class _NarrowConv2d:
    def __init__(self, shape: ConvShape, operand_rows: Sequence[int], machine: Machine) -> None:
        self.shape = shape
        self.v, self.one = Vectors(machine.lanes), Vectors(1)
        self.rows, self.columns = shape.result
        self.tile = max(1, min(self.columns, (machine.registers - machine.registers // 4) // shape.outputs))
        self.epilogue = Epilogue(operand_rows, shape.pixels, shape.outputs)

    def body(self) -> None:
        """Declare the arguments and run a task for each row of the result."""
        s = self.shape
        self.x = argument("x", (s.batch, s.height, s.width, s.inputs))
        self.w = argument("w", (s.outputs, s.kernel[0] * s.kernel[1], s.inputs))
        self.epilogue.declare()
        with T.parallel(s.batch * self.rows) as row:
            self.sums = local(self.tile * s.outputs, self.v.lanes)
            tiles(self.columns, self.tile, lambda first, count: self._pixels(row, first, count))

    def _pixels(self, row: Value, first: Value, count: int) -> None:
        """Compute ``count`` pixels of one row."""
        s, v = self.shape, self.v
        left = first * s.stride[1] - s.padding[1]
        inside = T.And(left >= 0, left + ((count - 1) * s.stride[1] + s.kernel[1]) <= s.width)
        for index in range(count * s.outputs):
            v.store(self.sums, v.all(0.0), index, 0)
        with T.If(inside):
            with T.Then():
                self._taps(row, left, count, True)
            with T.Else():
                self._taps(row, left, count, False)
        for pixel in range(count):
            for channel in range(s.outputs):
                place = row * self.columns + first + pixel
                (value,) = self.epilogue.finish(self.one, [self._sum(pixel * s.outputs + channel)], place, [channel])
                self.epilogue.store(self.one, value, place, channel)

    def _taps(self, row: Value, left: Value, count: int, inside: bool) -> None:
        """Add up what the tile reads; where not all of it is ``inside`` of the picture, zeros stand for the rest."""
        s, v = self.shape, self.v
        n, top = T.floordiv(row, self.rows), T.floormod(row, self.rows) * s.stride[0] - s.padding[0]

        def load(y: Value, x: Value, channel: Value) -> Value:
            value = v.load(self.x, n, y, x, channel)
            return value if inside else T.if_then_else(T.And(x >= 0, x < s.width), value, v.all(0.0))

        with T.serial(s.kernel[0]) as kh, T.serial(s.kernel[1]) as kw:
            y = top + kh
            with T.If(T.And(y >= 0, y < s.height)), T.Then(), T.serial(s.inputs // v.lanes) as vector:
                channel = vector * v.lanes
                weights = [
                    T.bind(v.load(self.w, output, kh * s.kernel[1] + kw, channel)) for output in range(s.outputs)
                ]
                for pixel in range(count):
                    value = T.bind(load(y, left + pixel * s.stride[1] + kw, channel))
                    for output, weight in enumerate(weights):
                        at = (pixel * s.outputs + output, 0)
                        v.store(self.sums, v.load(self.sums, *at) + value * weight, *at)

    def _sum(self, index: int) -> Value:
        """Return the sum of a vector's lanes, added up in pairs."""
        values = [self.sums[index, lane] for lane in range(self.v.lanes)]
        while len(values) > 1:
            values = [T.bind(first + second) for first, second in zip(values[::2], values[1::2], strict=True)]
        return values[0]


def narrow_conv2d(shape: ConvShape, operand_rows: Sequence[int], machine: Machine) -> tirx.PrimFunc:
    """Return the convolution as a function of x [N, H, W, CI], w [CO, KH KW, CI], the epilogue's operands and
    y [pixels, CO]."""
    return prim_func(_NarrowConv2d(shape, operand_rows, machine).body)
