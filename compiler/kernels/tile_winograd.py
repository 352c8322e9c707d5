"""3x3 convolution by Winograd's F(2 x 2, 3 x 3) in tiles of words: 16 products for four pixels instead of 36.

A task takes some 2x2 tiles of the result and a share of the panels. One point of the transform after the other, it
transforms the input of its tiles on the way to the words, multiplies them by that point's weights, which were
transformed at build time, and adds the products, as the output transform says, to the four pixels of their tiles. So
the words of one point and the sums are all that has to stay in the second cache level.
Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (2015).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import tvm.tirx.script.builder.ir as T
from tvm import tirx

from compiler.kernels.conv2d import ConvShape
from compiler.kernels.epilogue import Epilogue
from compiler.kernels.register_tile import Machine, RegisterTile
from compiler.kernels.sources import Sources
from compiler.kernels.split import BLOCK, WORD_BYTES, WORDS, split
from compiler.kernels.tile_conv2d import SPEED
from compiler.kernels.tiling import choice
from compiler.kernels.tir import Value, Vectors, argument, local, prim_func, scratch
from compiler.kernels.unit import TILE, Product, Words
from compiler.kernels.units import unit
from compiler.kernels.winograd_transform import matrices

M = 2  # rows and columns of a tile of the result
SIZE = M + 2
POINTS = SIZE**2
OUTPUT, WEIGHT, INPUT = matrices(M)  # A^T, G, B^T
OUTPUT_BEGINS = [next(i for i, factor in enumerate(row) if factor) for row in OUTPUT]  # the first point of a pixel
FIELDS = (32, 64, 128, 256, 512)
SHARES = (1, 2, 4, 8, 16)
# Multiply-adds in whose time one number is transformed and split, one product is added to a sum of a pixel, more where
# the sums do not stay in cache, and one weight is read; and by how much longer all of it takes. Measured.
WORD_COST, SUM_COST, SPILL_COST, READ_COST = 12, 3, 9, 8
OVERHEAD = 1.3
FEWEST = 64  # tiles that are worth the memory


@dataclass(frozen=True)
class Tiling:
    """Tiles of a field, and shares of the panels."""

    field: int = choice(0, *FIELDS)
    shares: int = choice(0, *SHARES)


def accepts(shape: ConvShape, machine: Machine) -> bool:
    """Tell whether the kernel takes the convolution: 3x3, stride 1, whole blocks of channels, numbers of two parts.

    Small pictures spend their time on reading weights, of which Winograd has more.
    """
    plain = (shape.kernel, shape.stride, shape.upsample) == ((3, 3), (1, 1), 1) and shape.inputs % BLOCK == 0
    return machine.unit is not None and machine.parts > 1 and plain and _tiles(shape) >= FEWEST


def _tiles(shape: ConvShape) -> int:
    return shape.batch * math.prod(math.ceil(extent / M) for extent in shape.result)


def _cost(shape: ConvShape, machine: Machine, field: int, shares: int) -> float:
    """Estimate the time in multiply-adds of vector registers, the last round of tasks as long as the others."""
    panels = math.ceil(shape.outputs / machine.panel)
    outputs, fields = math.ceil(panels / shares) * machine.panel, math.ceil(_tiles(shape) / field)
    rounds = math.ceil(fields * shares / machine.cores) * machine.cores
    words, sums = field * shape.inputs, field * M * M * outputs
    spilled = (words + sums) * WORD_BYTES > 1.5 * machine.cache
    adding = 9 * sums * (SUM_COST + (SPILL_COST if spilled else 0))
    task = POINTS * words * (outputs * SPEED[machine.unit, machine.parts] + WORD_COST) + adding
    return OVERHEAD * (rounds * task + READ_COST * fields * POINTS * shape.inputs * panels * machine.panel)


def _choose(shape: ConvShape, machine: Machine, tiling: Tiling = Tiling()) -> tuple[int, int]:
    """Return tiles of a field, whose words fit into the cache, and shares of the panels that take the least time."""
    most, panels = math.ceil(_tiles(shape) / TILE) * TILE, math.ceil(shape.outputs / machine.panel)
    room = 1.5 * machine.cache / (shape.inputs * WORD_BYTES)
    fields = [tiling.field] if tiling.field else [f for f in FIELDS if f == FIELDS[0] or f <= min(most, room)]
    shares = [tiling.shares] if tiling.shares else [share for share in SHARES if share <= panels]
    every = [(min(field, most), min(share, panels)) for field, share in product(fields, shares)]
    return min(every, key=lambda one: _cost(shape, machine, *one))


def cost(shape: ConvShape, machine: Machine) -> float:
    """Estimate the time in multiply-adds of vector registers."""
    return _cost(shape, machine, *_choose(shape, machine))


def _pick(index: Value, values: Sequence[float]) -> Value:
    """Return ``values[index]``: integers, or numbers as float32."""
    constants = [value if isinstance(value, int) else T.float32(value) for value in values]
    found = constants[-1]
    for position in range(len(values) - 2, -1, -1):
        found = T.Select(index == position, constants[position], found)
    return found


def _two(point: Value, start: Value, extent: int) -> list[tuple[Value, Value]]:
    """Return the two lines from ``start`` on that a point adds up, and their factors: 0 beyond the picture's edges."""
    positions = [[k for k, factor in enumerate(row) if factor] for row in INPUT]
    found = []
    for which in range(2):
        line = T.bind(start + _pick(point, [places[which] for places in positions]))
        factor = _pick(point, [row[places[which]] for row, places in zip(INPUT, positions, strict=True)])
        inside = T.Select(T.And(line >= 0, line < extent), factor, T.float32(0.0))
        found.append((T.max(T.min(line, extent - 1), 0), inside))
    return found


def _kept(corners: list[tuple[Value, Value, Value]]) -> list[tuple[Value, Value, Value]]:
    """Return the same places and factors from memory: TVM takes seconds to simplify what is written out."""
    places = T.alloc_buffer((2 * len(corners),), "int32", scope="local")
    factors = local(len(corners))
    for index, (y, x, factor) in enumerate(corners):
        T.buffer_store(places, y, [2 * index])
        T.buffer_store(places, x, [2 * index + 1])
        T.buffer_store(factors, factor, [index])
    return [(places[2 * index], places[2 * index + 1], factors[index]) for index in range(len(corners))]


class _TileWinograd:
    def __init__(
        self, shape: ConvShape, operand_rows: Sequence[int], machine: Machine, widths: Sequence[int], tiling: Tiling
    ) -> None:
        self.shape, self.parts = shape, machine.parts
        self.sources = Sources(widths or [shape.inputs])
        self.unit, self.v, self.machine = unit(machine), Vectors(machine.lanes), machine
        self.blocks = shape.inputs // BLOCK
        self.panels = math.ceil(shape.outputs / machine.panel)
        self.tiles = _tiles(shape)
        self.field, self.shares = _choose(shape, machine, tiling)
        self.fields, self.each = math.ceil(self.tiles / self.field), math.ceil(self.panels / self.shares)
        self.epilogue = Epilogue(operand_rows, shape.pixels, shape.outputs)

    def body(self) -> None:
        """Declare the arguments and run a task for each field and share of the panels."""
        shape = self.shape
        self.sources.declare((shape.batch, shape.height, shape.width))
        self.w = argument("w", (POINTS * self.panels, self.blocks, self.parts, 2, WORDS, WORDS), "uint32")
        self.epilogue.declare()
        with T.parallel(self.fields * self.shares) as task:
            share, self.first = T.floordiv(task, self.fields), T.floormod(task, self.fields) * self.field
            self.count = T.min(self.field, self.tiles - self.first)
            self.start = share * self.each
            self.end = T.min(self.panels, self.start + self.each)
            self.words = [scratch((self.blocks, self.field, WORDS)) for _ in range(self.parts)]
            self.sums = scratch((self.each * M * M * self.field, TILE))
            self.products = local(TILE, TILE)
            self.registers = RegisterTile(self.machine, self.sums)
            self.unit.configure()
            with T.serial(POINTS) as point:
                row, column = T.floordiv(point, SIZE), T.floormod(point, SIZE)
                self._transform(row, column)
                with T.serial(self.start, self.end) as panel, T.serial(T.floordiv(self.count + TILE - 1, TILE)) as tile:
                    self._multiply(point, panel, tile)
                    self._add(row, column, panel - self.start, tile)
            self.unit.release()
            self._write()

    def _place(self, tile: Value) -> tuple[Value, Value, Value]:
        """Return picture, row and column of a tile's first pixel."""
        down, across = (math.ceil(extent / M) for extent in self.shape.result)
        inside = T.floormod(tile, down * across)
        return T.floordiv(tile, down * across), T.floordiv(inside, across) * M, T.floormod(inside, across) * M

    def _transform(self, row: Value, column: Value) -> None:
        """Write the words of one point of the input transform, of all the field's tiles."""
        shape, v = self.shape, self.v
        above, before, _, _ = shape.padding
        with T.serial(self.count) as tile:
            picture, top, left = self._place(self.first + tile)
            rows, columns = _two(row, top - above, shape.height), _two(column, left - before, shape.width)
            corners = _kept([(y, x, f * g) for (y, f), (x, g) in product(rows, columns)])
            for source, begin, end in self.sources.spans():
                with T.serial(begin // BLOCK, end // BLOCK) as block:
                    pair = []
                    for half in (0, WORDS):
                        channel = block * BLOCK - begin + half
                        terms = [v.all(f) * v.load(source, picture, y, x, channel) for y, x, f in corners]
                        pair.append(T.bind(terms[0] + terms[1] + (terms[2] + terms[3])))
                    for words, value in zip(self.words, split(pair[0], pair[1], self.parts), strict=True):
                        v.store(words, value, block, tile, 0)

    def _multiply(self, point: Value, panel: Value, tile: Value) -> None:
        """Multiply the words of 32 tiles by a panel's weights."""
        left = Words(self.words, lambda block, _part: [block, tile * TILE])
        right = Words([self.w] * self.parts, lambda block, part: [point * self.panels + panel, block, part])
        with T.If(self.count - tile * TILE > TILE // 2):
            with T.Then():
                self.unit.accumulate(Product(2, self.products, 0, True, self.blocks, left, right))
            with T.Else():
                self.unit.accumulate(Product(1, self.products, 0, True, self.blocks, left, right))

    def _add(self, row: Value, column: Value, kept: Value, tile: Value) -> None:
        """Add the products to the sums of the pixels that they belong to."""
        v, count = self.v, T.min(TILE, self.count - tile * TILE)
        for y, x in product(range(M), repeat=2):
            factor = T.bind(_pick(row, OUTPUT[y]) * _pick(column, OUTPUT[x]))
            first = T.And(row == OUTPUT_BEGINS[y], column == OUTPUT_BEGINS[x])
            at = ((kept * M + y) * M + x) * self.field + tile * TILE
            with T.If(first):
                with T.Then():
                    with T.serial(count) as line:
                        for c in self.registers.columns:
                            v.store(self.sums, v.all(factor) * v.load(self.products, line, c), at + line, c)
                with T.Else():
                    with T.If(factor != T.float32(0.0)), T.Then():
                        with T.serial(count) as line:
                            for c in self.registers.columns:
                                value = v.all(factor) * v.load(self.products, line, c)
                                v.store(self.sums, value + v.load(self.sums, at + line, c), at + line, c)

    def _write(self) -> None:
        """Finish the pixels of all tiles."""
        height, width = self.shape.result
        with T.serial(self.start, self.end) as panel, T.serial(self.count) as tile:
            picture, top, left = self._place(self.first + tile)
            with T.serial(M) as y, T.serial(M) as x:
                with T.If(T.And(top + y < height, left + x < width)), T.Then():
                    at = (((panel - self.start) * M + y) * M + x) * self.field + tile
                    pixel = (picture * height + top + y) * width + left + x
                    self.registers.write_row(at, pixel, panel, self.epilogue)


def tile_winograd(
    shape: ConvShape,
    operand_rows: Sequence[int],
    machine: Machine,
    widths: Sequence[int] = (),
    tiling: Tiling = Tiling(),
) -> tirx.PrimFunc:
    """Return the convolution as a function of x [N, H, W, CI], packed w, the epilogue's operands and y [pixels, CO].

    With ``widths``, multiples of ``BLOCK``, x is several arguments, whose channels follow each other. w is what
    ``pack_words`` makes of what ``transform_panels`` makes of panels of float32.
    """
    return prim_func(_TileWinograd(shape, operand_rows, machine, widths, tiling).body)


def transform_panels(panels: int, inputs: int, machine: Machine) -> tirx.PrimFunc:
    """Return the packing of panels [panels, 9 x inputs, panel] as G g G^T, [16 x panels, inputs, panel].

    The panels of a point of the transform follow each other.
    """
    v = Vectors(machine.lanes)

    def body() -> None:
        weight = argument("panels", (panels, 9 * inputs, machine.panel))
        transformed = argument("transformed", (POINTS * panels, inputs, machine.panel))
        with T.parallel(panels) as panel, T.serial(inputs) as k, T.serial(machine.panel // machine.lanes) as c:
            lane = c * machine.lanes
            taps = [[T.bind(v.load(weight, panel, (3 * y + x) * inputs + k, lane)) for x in range(3)] for y in range(3)]
            for i, j in product(range(SIZE), repeat=2):
                total = v.all(0.0)
                for y, x in product(range(3), repeat=2):
                    if factor := WEIGHT[i][y] * WEIGHT[j][x]:
                        total = total + v.all(factor) * taps[y][x]
                v.store(transformed, total, (SIZE * i + j) * panels + panel, k, lane)

    return prim_func(body)
