"""3x3 convolution by Winograd's minimal filtering F(m x m, 3 x 3), NHWC, float32, weights stored at their raw size.

A tile of m x m outputs takes (m + 2)^2 multiplies a channel instead of 9 m^2. Weights are packed
as for direct convolution, and a block of them is transformed in cache on its way to the multiply: storing them
transformed would take 4 times the memory for F(4 x 4), and transforming costs a few per cent when a group of tiles
shares it. With many tiles a task is a group of tiles, whose transformed input stays in cache while all panels pass;
with few, all tiles are one group and the tasks are the panels, so that each weight is read and transformed once.
Sources: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (2015); the transforms follow Cook and Toom.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import tvm.tirx.script.builder.ir as T
from tvm import tirx

from compiler.kernels.conv2d import ConvShape
from compiler.kernels.epilogue import Epilogue
from compiler.kernels.register_tile import UNROLL, Machine, RegisterTile
from compiler.kernels.tiling import choice
from compiler.kernels.tir import Value, Vectors, argument, local, prim_func, steps, tile_size

POINTS = (0, 1, -1, 2, -2, Fraction(1, 2), Fraction(-1, 2), 4, -4)
GROUP_BLOCKS = 8  # register tiles of tiles in a group
EFFICIENCY = 0.65  # of the register tile beside transforms, as measured at large pictures
TRANSFORM_COST = 12  # multiply-adds in whose time one element is transformed
OUTPUT_TILES = (2, 4)
CHANNEL_BLOCK = 32  # channels of weights transformed at a time

Matrix = list[list[float]]


def matrices(m: int) -> tuple[Matrix, Matrix, Matrix]:
    """Return A^T [m, m + 2], G [m + 2, 3] and B^T [m + 2, m + 2] of F(m, 3), so that y = A^T ((G g) * (B^T d))."""
    points = [Fraction(p) for p in POINTS[: m + 1]]
    size = m + 2

    def product(skipped: int | None) -> list[Fraction]:
        """Return the coefficients of the product of (x - p) over the points, lowest power first."""
        coefficients = [Fraction(1)]
        for index, p in enumerate(points):
            if index != skipped:
                shifted, scaled = [Fraction(0), *coefficients], [*(-p * c for c in coefficients), Fraction(0)]
                coefficients = [a + b for a, b in zip(shifted, scaled, strict=True)]
        return coefficients + [Fraction(0)] * (size - len(coefficients))

    def norm(j: int) -> Fraction:
        value = Fraction(1)
        for index, p in enumerate(points):
            if index != j:
                value *= points[j] - p
        return value

    a = [[*(p**i for p in points), Fraction(i == m - 1)] for i in range(m)]
    g = [[points[j] ** k / norm(j) for k in range(3)] for j in range(m + 1)] + [[Fraction(0), Fraction(0), Fraction(1)]]
    b = [product(j) for j in range(m + 1)] + [product(None)]
    return tuple([[float(x) for x in row] for row in matrix] for matrix in (a, g, b))  # type: ignore[return-value]


@dataclass(frozen=True)
class Tiling:
    """The m of F(m x m), register tiles of tiles in a group, and whether a task is a panel (1) or a group (2)."""

    m: int = choice(0, *OUTPUT_TILES)
    group: int = choice(GROUP_BLOCKS, 2, 4, 16)
    task: int = choice(0, 1, 2)


class _Winograd:
    def __init__(self, shape: ConvShape, operand_rows: Sequence[int], machine: Machine, m: int, tiling: Tiling) -> None:
        m = tiling.m or m
        self.shape, self.machine, self.m = shape, machine, m
        self.v = Vectors(machine.lanes)
        self.size = m + 2
        self.points = self.size * self.size
        self.at, self.g, self.bt = matrices(m)
        self.height, self.width = shape.result
        self.down, self.across = -(-self.height // m), -(-self.width // m)
        self.tiles = shape.batch * self.down * self.across
        self.panels = shape.outputs // machine.panel
        self.rows = tile_size(self.tiles, machine.rows)
        few = self.tiles < tiling.group * self.rows * machine.cores
        self.few = few if tiling.task == 0 else tiling.task == 1
        self.group = -(-self.tiles // self.rows) if self.few else tiling.group
        self.epilogue = Epilogue(operand_rows, shape.pixels, shape.outputs)

    def body(self) -> None:
        """Declare the arguments and share groups of tiles, or panels, among the cores."""
        s = self.shape
        self.x = argument("x", (s.batch, s.height, s.width, s.inputs))
        self.w = argument("w", (self.panels, 9 * s.inputs, self.machine.panel))
        self.epilogue.declare()
        transformed = (self.group, self.points, self.rows, s.inputs)
        if self.few:
            data = T.alloc_buffer(transformed, "float32", layout=None)
            with T.parallel(self.tiles) as tile:
                self._input(data, tile, tile)
            with T.parallel(self.panels) as panel:
                self._panel(data, *self._workspace(), 0, self.tiles, panel)
            return
        tiles = self.group * self.rows
        with T.parallel(-(-self.tiles // tiles)) as group:
            data = local(*transformed)
            weights, products, accumulators = self._workspace()
            count = T.min(tiles, self.tiles - group * tiles)
            with T.serial(count) as tile:
                self._input(data, tile, group * tiles + tile)
            with T.serial(self.panels) as panel:
                self._panel(data, weights, products, accumulators, group * tiles, count, panel)

    def _workspace(self) -> tuple[Value, Value, Value]:
        """Return a task's transformed weights, products before the output transform, and register tile."""
        panel = self.machine.panel
        block = min(CHANNEL_BLOCK, self.shape.inputs)
        return (
            local(self.points, block, panel),
            local(self.group, self.points, self.rows, panel),
            local(self.rows, panel),
        )

    def _place(self, tile: Value) -> tuple[Value, Value, Value]:
        """Return picture, row and column of a tile."""
        per_picture = self.down * self.across
        inside = T.floormod(tile, per_picture)
        return T.floordiv(tile, per_picture), T.floordiv(inside, self.across), T.floormod(inside, self.across)

    def _combine(self, row: Sequence[float], values: Sequence[Value]) -> Value:
        """Return the sum of ``row[i] values[i]`` without multiplications by 0 and 1."""
        total = None
        for factor, value in zip(row, values, strict=True):
            if factor == 0:
                continue
            term = value if abs(factor) == 1 else self.v.all(abs(factor)) * value
            if total is None:
                total = term if factor > 0 else self.v.all(0.0) - term
            else:
                total = total + term if factor > 0 else total - term
        return T.bind(self.v.all(0.0) if total is None else total)

    def _both_sides(self, matrix: Matrix, values: Sequence[Sequence[Value]]) -> list[list[Value]]:
        """Return ``matrix values matrix^T`` for a square of vectors given by its columns, as rows."""
        columns = [[self._combine(row, column) for row in matrix] for column in values]
        return [[self._combine(row, [column[i] for column in columns]) for row in matrix] for i in range(len(matrix))]

    def _input(self, data: Value, slot: Value, tile: Value) -> None:
        """Write B^T d B of a tile, d its (m + 2)^2 pixels, zero outside of the picture."""
        s, v = self.shape, self.v
        n, row, column = self._place(tile)
        top, left = row * self.m - s.padding[0], column * self.m - s.padding[1]
        inside = T.And(T.And(top >= 0, top + self.size <= s.height), T.And(left >= 0, left + self.size <= s.width))

        def load(y: int, x: int, channel: Value, safe: bool) -> Value:
            if safe:
                return v.load(self.x, n, top + y, left + x, channel)
            known = T.And(T.And(top + y >= 0, top + y < s.height), T.And(left + x >= 0, left + x < s.width))
            return T.if_then_else(known, v.load(self.x, n, top + y, left + x, channel), v.all(0.0))

        def transform(safe: bool) -> None:
            with T.serial(s.inputs // v.lanes) as block:
                channel = block * v.lanes
                columns = [[T.bind(load(y, x, channel, safe)) for y in range(self.size)] for x in range(self.size)]
                for y, values in enumerate(self._both_sides(self.bt, columns)):
                    for x, value in enumerate(values):
                        where = (T.floordiv(slot, self.rows), y * self.size + x, T.floormod(slot, self.rows))
                        v.store(data, value, *where, channel)

        with T.If(inside):
            with T.Then():
                transform(True)
            with T.Else():
                transform(False)

    def _panel(
        self,
        data: Value,
        weights: Value,
        products: Value,
        accumulators: Value,
        first: Value,
        count: Value,
        panel: Value,
    ) -> None:
        """Compute one panel of channels for ``count`` tiles from ``first`` on."""
        inputs = self.shape.inputs
        size = min(CHANNEL_BLOCK, inputs)
        blocks = T.floordiv(count + (self.rows - 1), self.rows)

        def channels(start: Value, length: int) -> None:
            self._weights(weights, start, length, panel)
            with T.serial(self.points) as point:
                with T.serial(blocks) as block:
                    self._multiply(data, weights, products, accumulators, (start, length), point, block)

        with T.serial(inputs // size) as block:
            channels(block * size, size)
        if inputs % size:
            channels(inputs - inputs % size, inputs % size)
        with T.serial(count) as tile:
            self._output(products, tile, first + tile, panel)

    def _weights(self, weights: Value, start: Value, length: int, panel: Value) -> None:
        """Write G g G^T of a block of channels of one panel."""
        inputs = self.shape.inputs
        with T.serial(length) as k:
            with T.serial(self.machine.panel // self.v.lanes) as c:
                lane = c * self.v.lanes
                columns = [
                    [T.bind(self.v.load(self.w, panel, (y * 3 + x) * inputs + start + k, lane)) for y in range(3)]
                    for x in range(3)
                ]
                for y, values in enumerate(self._both_sides(self.g, columns)):
                    for x, value in enumerate(values):
                        self.v.store(weights, value, y * self.size + x, k, lane)

    def _multiply(
        self, data: Value, weights: Value, products: Value, accumulators: Value, channels: tuple[Value, int],
        point: Value, block: Value,
    ) -> None:  # fmt: skip
        """Add a block of channels to the products of one register tile at one point of the transform."""
        start, length = channels
        registers = RegisterTile(self.machine, accumulators)
        for row in range(self.rows):
            for c in registers.columns:
                earlier = self.v.load(products, block, point, row, c)
                self.v.store(accumulators, T.Select(start == 0, self.v.all(0.0), earlier), row, c)
        steps(
            length,
            UNROLL,
            lambda k: registers.multiply(
                self.rows,
                lambda row: data[block, point, row, start + k],
                lambda c: self.v.load(weights, point, k, c),
            ),
        )
        for row in range(self.rows):
            for c in registers.columns:
                self.v.store(products, self.v.load(accumulators, row, c), block, point, row, c)

    def _output(self, products: Value, tile: Value, place: Value, panel: Value) -> None:
        """Write A^T products A of a tile, finished by the epilogue."""
        n, row, column = self._place(place)
        block, slot = T.floordiv(tile, self.rows), T.floormod(tile, self.rows)
        whole = self.height % self.m == 0 and self.width % self.m == 0
        with T.serial(self.machine.panel // self.v.lanes) as c:
            lane = c * self.v.lanes
            columns = [
                [T.bind(self.v.load(products, block, y * self.size + x, slot, lane)) for y in range(self.size)]
                for x in range(self.size)
            ]
            for y, values in enumerate(self._both_sides(self.at, columns)):
                for x, value in enumerate(values):
                    at_y, at_x = row * self.m + y, column * self.m + x
                    pixel = (n * self.height + at_y) * self.width + at_x
                    store = self._store(value, pixel, panel * self.machine.panel + lane)
                    if whole:
                        store()
                        continue
                    with T.If(T.And(at_y < self.height, at_x < self.width)):
                        with T.Then():
                            store()

    def _store(self, value: Value, pixel: Value, channel: Value) -> Callable[[], None]:
        def store() -> None:
            (finished,) = self.epilogue.finish(self.v, [value], pixel, [channel])
            self.epilogue.store(self.v, finished, pixel, channel)

        return store


def _cost(shape: ConvShape, machine: Machine, m: int) -> float:
    """Estimate the multiply-adds of F(m x m), transforms included, a transform's element at what its memory costs."""
    points = (m + 2) ** 2
    tiles = shape.batch * math.prod(-(-extent // m) for extent in shape.result)
    groups = max(1, tiles // (GROUP_BLOCKS * machine.rows))
    multiplies = tiles * shape.inputs * shape.outputs
    transforms = tiles * (shape.inputs + shape.outputs) + groups * shape.inputs * shape.outputs
    return points * (multiplies + TRANSFORM_COST * transforms) / EFFICIENCY


def accepts(shape: ConvShape, machine: Machine) -> bool:
    """Tell whether the kernel takes it: 3x3, stride 1, whole vectors of inputs and whole panels of outputs."""
    plain = shape.kernel == (3, 3) and shape.stride == (1, 1)
    return plain and shape.inputs % machine.lanes == 0 and shape.outputs % machine.panel == 0


def cheapest_tile(shape: ConvShape, machine: Machine) -> tuple[int, float]:
    """Return m and estimated cost of the cheapest F(m x m), or of the one that the machine is told to use."""
    if machine.winograd_tile is not None:
        return machine.winograd_tile, 0.0
    return min(((m, _cost(shape, machine, m)) for m in OUTPUT_TILES), key=lambda choice: choice[1])


def winograd(
    shape: ConvShape, operand_rows: Sequence[int], machine: Machine, m: int, tiling: Tiling = Tiling()
) -> tirx.PrimFunc:
    """Return the convolution by F(m x m, 3 x 3) as a function of x [N, H, W, CI], w [CO / panel, 9 CI, panel], the
    epilogue's operands and y [pixels, CO]."""
    return prim_func(_Winograd(shape, operand_rows, machine, m, tiling).body)
