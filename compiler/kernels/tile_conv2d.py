"""Convolution and matrix multiply in tiles of words: float32 split into bfloat16 parts.

A task takes a field of the result, some rows and columns of a picture, and a range of panels. It splits the part of
the input that the field reads, padding included, into the second cache level as words [channel block][pixel][16], so
that 16 neighbouring pixels are one tile for every tap of the kernel. The result is computed on rows as wide as that
part, and the columns beyond the field are dropped. A chunk of a panel's weights, which are packed as words at
build time, meets all pixels of the field. Where the channels of a field exceed the cache they are taken in groups, and
the sums of all panels wait in memory.
A multiply is the convolution of a picture one pixel wide. Nearest upsampling before a convolution is a way to read, or
where ``upsampled`` knows a shorter one, four convolutions of the small picture that share what was split.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import tvm.tirx.script.builder.ir as T
from tvm import tirx

from compiler.kernels.conv2d import ConvShape
from compiler.kernels.epilogue import Epilogue
from compiler.kernels.register_tile import Machine, RegisterTile
from compiler.kernels.sources import Sources
from compiler.kernels.split import BLOCK, WORD_BYTES, WORDS, split
from compiler.kernels.tiling import choice
from compiler.kernels.tir import Value, Vectors, argument, prim_func, scratch
from compiler.kernels.unit import SIDE, TILE, Product, Words
from compiler.kernels.units import unit
from compiler.kernels.upsampled import PHASED, PHASES, has_phases

FIELD = 512  # pixels of a field that pay for reading the weights anew
COLUMNS = 64  # of a field at most: a field also splits the rows and columns that its kernel overlaps with
# Time of a product, by unit and parts, in multiply-adds of vector registers; measured.
SPEED: dict[tuple[str | None, int], float] = {("amx", 1): 0.15, ("amx", 2): 0.35, ("dot", 1): 0.55}
SPLIT_COST = 6  # multiply-adds in whose time one number is split


@dataclass(frozen=True)
class Tiling:
    """Pixels and columns of a field at most, steps of a chunk at most, shares of the panels, and a group's cache.

    The cache is in eighths of what a task may fill.
    """

    field: int = choice(FIELD, 128, 256, 1024, 2048)
    columns: int = choice(COLUMNS, 16, 32, 128)
    chunk: int = choice(5, 2, 3, 4, 8, 10)  # steps whose weights stay in the first cache level
    shares: int = choice(0, 1, 2, 4, 8)
    cache: int = choice(8, 4, 12)


def even(count: int, limit: int) -> int:
    """Return the size of parts, each of at most ``limit``, that divide ``count`` as evenly as can be."""
    return -(-count // -(-count // limit))


def accepts(shape: ConvShape, machine: Machine) -> bool:
    """Tell whether the kernel takes the convolution: whole blocks of channels, and the same stride both ways."""
    return machine.unit is not None and shape.inputs % BLOCK == 0 and shape.stride[0] == shape.stride[1]


def cost(shape: ConvShape, machine: Machine) -> float:
    """Estimate the time in multiply-adds of vector registers, dropped columns and half-empty tiles included."""
    height, width = shape.result
    columns = even(width, COLUMNS)
    used = shape.batch * (height - 1) * _wide(shape, columns) * -(-width // columns) + width
    taps = math.prod(shape.kernel) * (PHASED if has_phases(shape) else 1)
    products = SIDE * -(-used // SIDE) * taps * shape.inputs * shape.outputs
    return products * SPEED[machine.unit, machine.parts] + SPLIT_COST * shape.pixels * shape.inputs


def _wide(shape: ConvShape, columns: int) -> int:
    """Return the columns of the padded input that ``columns`` of the result read."""
    return (columns - 1) * shape.stride[1] + shape.kernel[1]


class _TileConv2d:
    def __init__(
        self,
        shape: ConvShape,
        operand_rows: Sequence[int],
        machine: Machine,
        activation: str | None,
        results: int,
        widths: Sequence[int],
        tiling: Tiling,
    ) -> None:
        self.shape, self.machine, self.parts = shape, machine, machine.parts
        self.sources = Sources(widths or [shape.inputs])
        self.unit = unit(machine)
        self.v = Vectors(machine.lanes)
        self.stride = shape.stride[0]
        self.phases = PHASES if has_phases(shape) else 1
        self.grid = tuple(extent // self.phases for extent in shape.result)  # pixels that a phase computes
        kernel = (2, 2) if self.phases > 1 else shape.kernel
        self.taps, self.taps_wide = math.prod(kernel), kernel[1]
        self.blocks = shape.inputs // BLOCK
        self.channel_panels = -(-shape.outputs // machine.panel)
        self.panels = self.channel_panels * self.phases**2
        self.epilogue = Epilogue(operand_rows, shape.pixels, shape.outputs, activation, results)
        self._share(tiling)

    def _share(self, tiling: Tiling) -> None:
        """Decide on the size of a field, shares of the panels, and channel blocks of a group and a chunk."""
        shape, cores = self.shape, self.machine.cores
        height, width = self.grid
        whole = shape.batch * height * width <= tiling.field
        self.pictures = shape.batch if whole else 1
        self.columns = even(width, tiling.columns)
        self.across = -(-width // self.columns)
        self.rows = height if whole else even(height, max(1, tiling.field // self.columns))
        self.down = -(-height // self.rows)
        fields = shape.batch // self.pictures * self.down * self.across
        self.shares = min(tiling.shares or (1 if fields >= cores else cores), self.panels)
        self.tasks = fields * self.shares
        self.needed = (self.rows - 1) * self.stride + shape.kernel[0]  # rows of the padded input
        self.wide = _wide(shape, self.columns)
        self.tiles = -(-((self.rows - 1) * self.wide + self.columns) // TILE)
        block = self.pictures * self.needed * self.wide * WORDS * WORD_BYTES * self.parts
        self.group = even(self.blocks, max(1, self.machine.cache * tiling.cache // 8 // block))
        self.groups = -(-self.blocks // self.group)
        self.chunk = even(self.group, tiling.chunk)
        self.each = -(-self.panels // self.shares)

    def body(self) -> None:
        """Declare the arguments and run a task for each field and share of the panels."""
        shape = self.shape
        self.small = (shape.height // shape.upsample, shape.width // shape.upsample)
        self.sources.declare((shape.batch, *self.small))
        self.w = argument("w", (self.panels, self.taps * self.blocks, self.parts, 2, WORDS, WORDS), "uint32")
        self.epilogue.declare()
        with T.parallel(self.tasks) as task:
            field, share = T.floordiv(task, self.shares), T.floormod(task, self.shares)
            place = T.floordiv(field, self.across)
            self.picture = 0 if self.pictures > 1 else T.floordiv(place, self.down)
            self.top = T.floormod(place, self.down) * self.rows
            self.left_column = T.floormod(field, self.across) * self.columns
            self.count = T.min(self.rows, self.grid[0] - self.top)
            self.count_columns = T.min(self.columns, self.grid[1] - self.left_column)
            self._allocate()
            self.unit.configure()
            with T.serial(self.groups) as group:
                self._split_input(group)
                with T.serial(share * self.each, T.min(self.panels, share * self.each + self.each)) as panel:
                    kept = panel - share * self.each if self.groups > 1 else 0
                    with T.serial(self.taps) as tap:
                        with T.serial(-(-self.group // self.chunk)) as chunk:
                            self._multiply(group, panel, kept, tap, chunk)
                    with T.If(group == self.groups - 1), T.Then():
                        self._write(panel, kept)
            self.unit.release()

    def _allocate(self) -> None:
        pixels = self.pictures * self.needed * self.wide + TILE * self.stride  # tiles reach over the end
        sums = (self.each if self.groups > 1 else 1) * self.pictures * self.tiles * TILE
        self.left = [scratch((self.group, pixels, WORDS)) for _ in range(self.parts)]
        self.sums = scratch((sums, TILE))
        self.registers = RegisterTile(self.machine, self.sums)

    def _blocks(self, group: Value) -> Value:
        return T.min(self.group, self.blocks - group * self.group) if self.blocks % self.group else self.group

    def _split_input(self, group: Value) -> None:
        """Split the group's channels of what the field reads, upsampled; padding is zero."""
        v, repeat = self.v, self.shape.upsample // self.phases
        (height, width), (top, left, _, _) = self.small, self.shape.padding
        with T.serial(self.pictures) as picture, T.serial(self.needed) as row, T.serial(self.wide) as column:
            pixel = (picture * self.needed + row) * self.wide + column
            y, x = self.top * self.stride + row - top, self.left_column * self.stride + column - left
            inside = T.And(T.And(y >= 0, y < height * repeat), T.And(x >= 0, x < width * repeat))
            at = [self.picture + picture, *(T.floordiv(i, repeat) for i in (y, x))]
            start, count = group * self.group, self._blocks(group)
            for source, first, end in self.sources.spans():
                low, high = (T.min(T.max(edge // BLOCK - start, 0), count) for edge in (first, end))
                with T.serial(low, high) as block:
                    with T.If(inside):
                        with T.Then():
                            channel = (start + block) * BLOCK - first
                            pair = [v.load(source, *at, channel + half) for half in (0, WORDS)]
                            self._store_words(self.left, pair, block, pixel, 0)
                        with T.Else():
                            for words in self.left:
                                T.buffer_store(words, v.all(0.0), [block, pixel, T.ramp(0, 1, WORDS)])

    def _store_words(self, buffers: Sequence[Value], pair: Sequence[Value], *index: Value) -> None:
        for words, value in zip(buffers, split(pair[0], pair[1], self.parts), strict=True):
            self.v.store(words, value, *index)

    def _multiply(self, group: Value, panel: Value, kept: Value, tap: Value, chunk: Value) -> None:
        """Add one chunk of the reduction to the field's sums of a panel."""
        length = T.min(self.chunk, self._blocks(group) - chunk * self.chunk)
        start = tap * self.blocks + group * self.group + chunk * self.chunk
        used = (self.count - 1) * self.wide + self.count_columns  # pixels of a picture's field, dropped ones included
        chunks = -(-self.group // self.chunk)
        iteration = (group * self.taps + tap) * chunks + chunk
        below, right = self._phase(panel)
        below, right = below + T.floordiv(tap, self.taps_wide), right + T.floormod(tap, self.taps_wide)
        offset = below * self.wide + right
        with T.serial(self.pictures) as picture, T.serial(T.floordiv(used + TILE - 1, TILE)) as tile:
            row = ((kept * self.pictures + picture) * self.tiles + tile) * TILE
            pixel = picture * self.needed * self.wide + offset + tile * TILE * self.stride
            with T.If(used - tile * TILE > SIDE):
                with T.Then():
                    self._tile(2, iteration, row, chunk, length, pixel, [panel, start])
                with T.Else():
                    self._tile(1, iteration, row, chunk, length, pixel, [panel, start])

    def _tile(
        self,
        rows: int,
        iteration: Value,
        row: Value,
        chunk: Value,
        length: Value,
        pixel: Value,
        right: Sequence[Value],
    ) -> None:
        panel, first = right
        left = Words(self.left, lambda block, _part: [chunk * self.chunk + block, pixel])
        weights = Words([self.w] * self.parts, lambda block, part: [panel, first + block, part])
        self.unit.accumulate(Product(rows, self.sums, row, iteration == 0, length, left, weights, self.stride))

    def _phase(self, panel: Value) -> tuple[Value, Value]:
        """Return the row and column of the phase that a panel computes."""
        if self.phases == 1:
            return 0, 0
        phase = T.floordiv(panel, self.channel_panels)
        return T.floordiv(phase, self.phases), T.floormod(phase, self.phases)

    def _write(self, panel: Value, kept: Value) -> None:
        """Finish a panel of the field, without what is dropped."""
        (height, width), phases, phase = self.shape.result, self.phases, self._phase(panel)
        channels = panel if phases == 1 else T.floormod(panel, self.channel_panels)
        with T.serial(self.pictures) as picture, T.serial(self.count) as y, T.serial(self.count_columns) as x:
            row = (kept * self.pictures + picture) * self.tiles * TILE + y * self.wide + x
            line = (self.picture + picture) * height + (self.top + y) * phases + phase[0]
            pixel = line * width + (self.left_column + x) * phases + phase[1]
            self.registers.write_row(row, pixel, channels, self.epilogue)


def tile_conv2d(
    shape: ConvShape,
    operand_rows: Sequence[int],
    machine: Machine,
    activation: str | None = None,
    results: int = 1,
    widths: Sequence[int] = (),
    tiling: Tiling = Tiling(),
) -> tirx.PrimFunc:
    """Return the convolution as a function of x [N, H, W, CI], packed w, the epilogue's operands and y [pixels, CO].

    Several results [pixels, CO / results] share the channels evenly, in whole panels. With ``widths``, multiples of
    ``BLOCK``, x is several arguments, whose channels follow each other.

    w is what ``pack_words`` makes of panels of float32, of a doubled picture's those that ``upsampled.add_taps`` made.
    """
    return prim_func(_TileConv2d(shape, operand_rows, machine, activation, results, widths, tiling).body)


def pack_words(panels: int, rows: int, machine: Machine) -> tirx.PrimFunc:
    """Return the packing of panels [panels, rows, 32] as bfloat16 words [panels, rows / 32, parts, 2, 16, 16].

    Those of two parts take the memory of the float32 numbers.
    """
    v = Vectors(WORDS)

    def body() -> None:
        weight = argument("panels", (panels, rows, machine.panel))
        words = argument("words", (panels, rows // BLOCK, machine.parts, 2, WORDS, WORDS), "uint32")
        with T.parallel(panels) as panel, T.serial(rows // BLOCK) as block, T.serial(WORDS) as pair:
            for side in range(2):
                both = [v.load(weight, panel, block * BLOCK + pair + half, side * WORDS) for half in (0, WORDS)]
                for part, value in enumerate(split(both[0], both[1], machine.parts)):
                    bits = T.reinterpret(f"uint32x{WORDS}", value)
                    v.store(words, bits, panel, block, part, side, pair, 0)

    return prim_func(body)
