"""3x3 convolution by Winograd's minimal filtering F(m x m, 3 x 3), NHWC, float32, weights stored at their raw size.

A tile of m x m outputs takes (m + 2)^2 multiplies a channel instead of 9 m^2. Weights are packed as for direct
convolution, and a block of them is transformed in cache on its way to the multiply: storing them transformed would take
4 times the memory for F(4 x 4), and transforming costs a few per cent when a group of tiles shares it.

With many tiles a task is a group of tiles, and all panels pass by; with few, all tiles are one group and the tasks are
the panels, so that each weight is read and transformed once. Transformed inputs lie as the multiplies read them, one
point after the other, so that they stream from wherever they fit; a group is so large that its products of a panel and
a block of transformed weights share the second cache level.

Nearest upsampling before the convolution is a way to read: see ``winograd_transform``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tvm.tirx.script.builder.ir as T
from tvm import tirx

from compiler.kernels.conv2d import ConvShape
from compiler.kernels.epilogue import Epilogue
from compiler.kernels.register_tile import UNROLL, Machine, RegisterTile
from compiler.kernels.tiling import choice
from compiler.kernels.tir import LINE, Value, Vectors, argument, local, prefetch, prim_func, steps
from compiler.kernels.winograd_transform import Filter, minimal_filter, transform

OUTPUT_TILES = (2, 4, 6)
GROUP = 96  # tiles at most: more of them leave no room for their products of a panel
CHANNELS = 128  # of a block of weights at most
WEIGHTS = 0.6  # of the second cache level, for a block of transformed weights
INPUTS = 0.5  # of a core's part of the last cache level, for the transformed inputs of a group
FEW = 160  # tiles up to which the tasks are panels
FLOAT = 4  # bytes
TRANSFORM_COST = 12  # multiply-adds in whose time one element of the input or the result is transformed
WEIGHT_COST = 6  # and one of the weights
EFFICIENCY = {2: 0.85, 4: 0.85, 6: 0.75}  # of the register tile where caches are full, as measured
BLOCK_COST = 1.0  # rows of a register tile in whose time its sums are loaded and stored


@dataclass(frozen=True)
class Tiling:
    """What may be chosen: the m of F(m x m), tiles of a group and channels of a block at most, and how tasks are cut.

    A task is a panel (1) or a group (2).
    """

    m: int = choice(0, *OUTPUT_TILES)
    group: int = choice(0, 24, 48, 96, 144)
    channels: int = choice(0, 32, 64, 128)
    task: int = choice(0, 1, 2)


@dataclass(frozen=True)
class Groups:
    """``count`` groups of ``tiles``, each in ``blocks`` register tiles of ``rows``; ``few``: all are one group."""

    few: bool
    count: int
    tiles: int
    blocks: int
    rows: int


def _groups(tiles: int, inputs: int, points: int, machine: Machine, tiling: Tiling = Tiling()) -> Groups:
    """Share tiles evenly among the cores, in groups that the caches hold, and these in register tiles."""
    few = tiles <= FEW if tiling.task == 0 else tiling.task == 1
    count = 1
    if not few:
        fitting = int(INPUTS * machine.shared) // (points * inputs * FLOAT)
        most = tiling.group or min(GROUP, max(2 * machine.rows, fitting))
        count = -(-tiles // (most * machine.cores)) * machine.cores
    each = -(-tiles // count)
    splits = [(-(-each // rows), rows) for rows in range(machine.rows, 0, -1)]
    blocks, rows = min(splits, key=lambda split: split[0] * (split[1] + BLOCK_COST))
    return Groups(few, -(-tiles // each), each, blocks, rows)


def _channels(inputs: int, points: int, machine: Machine, tiling: Tiling) -> int:
    """Return the most channels, in whole vectors, that divide the inputs and whose weights the cache holds."""
    fitting = int(WEIGHTS * machine.cache) // (points * machine.panel * FLOAT)
    most = max(machine.lanes, min(tiling.channels or CHANNELS, fitting))
    return max(size for size in range(machine.lanes, most + 1, machine.lanes) if inputs % size == 0)


class _Winograd:
    def __init__(self, shape: ConvShape, operand_rows: Sequence[int], machine: Machine, m: int, tiling: Tiling) -> None:
        self.shape, self.machine = shape, machine
        self.m = tiling.m if tiling.m and tiling.m % shape.upsample == 0 else m
        self.v = Vectors(machine.lanes)
        self.filter: Filter = minimal_filter(self.m, shape.upsample)
        self.products, self.reads = self.filter.products, self.filter.reads
        self.points = self.products**2
        self.down, self.across = (-(-extent // self.m) for extent in shape.result)
        self.tiles = shape.batch * self.down * self.across
        self.panels = shape.outputs // machine.panel
        self.groups = _groups(self.tiles, shape.inputs, self.points, machine, tiling)
        self.rows = self.groups.rows
        self.slots = self.groups.blocks * self.rows
        self.channels = _channels(shape.inputs, self.points, machine, tiling)
        self.epilogue = Epilogue(operand_rows, shape.pixels, shape.outputs)

    def body(self) -> None:
        """Declare the arguments and share groups of tiles, or panels, among the cores."""
        s, machine, each = self.shape, self.machine, self.groups.tiles
        self.small = (s.height // s.upsample, s.width // s.upsample)
        self.x = argument("x", (s.batch, *self.small, s.inputs))
        self.w = argument("w", (self.panels, 9 * s.inputs, machine.panel))
        self.epilogue.declare()
        # A vector more than a slot needs: slots a multiple of 4 KB apart compete for the same lines of the cache.
        # The buffer is flat, since TVM takes such padding out of any other.
        self.slot = self.points * self.channels + machine.lanes
        transformed = (s.inputs // self.channels * self.slots * self.slot,)
        if self.groups.few:
            self.data = T.alloc_buffer(transformed, "float32", layout=None)
            with T.parallel(self.tiles) as tile:
                self.square = self._square()
                self._input(tile, tile)
            with T.parallel(self.panels) as panel:
                self._allocate()
                self._panel(0, self.tiles, panel)
            return
        with T.parallel(self.groups.count) as group:
            self.data = local(*transformed)
            self._allocate()
            count = T.min(each, self.tiles - group * each)
            with T.serial(count) as tile:
                self._input(tile, group * each + tile)
            with T.serial(self.panels) as panel:
                self._panel(group * each, count, panel)

    def _allocate(self) -> None:
        """Make room for a task's transformed weights, products, register tile, and a half transformed tile."""
        panel = self.machine.panel
        self.line = self.points * panel + self.machine.lanes
        self.weights = local(self.channels * self.line)
        self.sums = local(self.points * (self.slots + 1), panel)
        self.square = self._square()

    def _square(self) -> Value:
        """Make room for a tile that is transformed in one direction."""
        return local(self.products * max(self.reads, self.m), self.machine.lanes)

    def _place(self, tile: Value) -> tuple[Value, Value, Value]:
        """Return picture, row and column of a tile."""
        per_picture = self.down * self.across
        inside = T.floormod(tile, per_picture)
        return T.floordiv(tile, per_picture), T.floordiv(inside, self.across), T.floormod(inside, self.across)

    def _input(self, slot: Value, tile: Value) -> None:
        """Write B^T d B of a tile, d the pixels that it reads, zero outside of the picture."""
        v, (height, width), reads = self.v, self.small, self.reads
        n, row, column = self._place(tile)
        top, left = row * self.filter.step - self.shape.padding[0], column * self.filter.step - self.shape.padding[1]
        inside = T.And(T.And(top >= 0, top + reads <= height), T.And(left >= 0, left + reads <= width))

        def load(y: int, x: Value, channel: Value, safe: bool) -> Value:
            if safe:
                return v.load(self.x, n, top + y, left + x, channel)
            known = T.And(T.And(top + y >= 0, top + y < height), T.And(left + x >= 0, left + x < width))
            return T.if_then_else(known, v.load(self.x, n, top + y, left + x, channel), v.all(0.0))

        def whole(safe: bool) -> None:
            with T.serial(self.shape.inputs // v.lanes) as vector:
                channel = vector * v.lanes
                with T.serial(reads) as x:
                    values = [T.bind(load(y, x, channel, safe)) for y in range(reads)]
                    for y, value in enumerate(transform(v, self.filter.bt, values)):
                        v.store(self.square, value, y * reads + x, 0)
                block, inner = T.floordiv(channel, self.channels), T.floormod(channel, self.channels)
                with T.serial(self.products) as y:
                    values = [T.bind(v.load(self.square, y * reads + x, 0)) for x in range(reads)]
                    for x, value in enumerate(transform(v, self.filter.bt, values)):
                        v.store(
                            self.data,
                            value,
                            (block * self.slots + slot) * self.slot + (y * self.products + x) * self.channels + inner,
                        )

        with T.If(inside):
            with T.Then():
                whole(True)
            with T.Else():
                whole(False)

    def _panel(self, first: Value, count: Value, panel: Value) -> None:
        """Compute one panel of channels for ``count`` tiles from ``first`` on."""
        blocks = T.floordiv(count + (self.rows - 1), self.rows)
        with T.serial(self.shape.inputs // self.channels) as channels:
            self._weights(channels * self.channels, panel)
            with T.serial(self.points) as point, T.serial(blocks) as block:
                if self.groups.few:
                    self._prefetch(panel, channels, point * self.groups.blocks + block)
                self._multiply(channels, point, block * self.rows)
        with T.serial(count) as tile:
            self._output(tile, first + tile, panel)

    def _prefetch(self, panel: Value, channels: Value, turn: Value) -> None:
        """Ask for some of the weights that are transformed next, while these are multiplied."""
        width = max(1, self.machine.panel // LINE)  # cache lines of one input channel and tap
        lines, last = 9 * self.channels * width, channels == self.shape.inputs // self.channels - 1
        each = -(-lines // (self.points * self.groups.blocks))
        panel = T.min(panel + T.Select(last, 1, 0), self.panels - 1)
        start = T.Select(last, 0, (channels + 1) * self.channels)
        with T.serial(each) as index:
            line = T.min(turn * each + index, lines - 1)
            tap, place = T.floordiv(line, self.channels * width), T.floormod(line, self.channels * width)
            row = tap * self.shape.inputs + start + T.floordiv(place, width)
            prefetch(self.w, [panel, row, T.floormod(place, width) * LINE])

    def _weights(self, start: Value, panel: Value) -> None:
        """Write G g G^T of a block of channels of one panel."""
        v, g = self.v, self.filter.g
        with T.serial(self.channels) as k, T.serial(self.machine.panel // v.lanes) as c:
            lane, at = c * v.lanes, start + k
            taps = [
                [T.bind(v.load(self.w, panel, (y * 3 + x) * self.shape.inputs + at, lane)) for y in range(3)]
                for x in range(3)
            ]
            columns = [transform(v, g, column) for column in taps]
            for y in range(self.products):
                for x, value in enumerate(transform(v, g, [column[y] for column in columns])):
                    v.store(self.weights, value, k * self.line + (y * self.products + x) * self.machine.panel + lane)

    def _multiply(self, channels: Value, point: Value, slot: Value) -> None:
        """Add one block of channels to the products of one block of tiles at one point."""
        v = self.v
        registers = RegisterTile(self.machine, self.sums, lambda row: [point * (self.slots + 1) + slot + row])
        with T.If(channels == 0), T.Then():
            registers.clear(self.rows)
        steps(
            self.channels,
            UNROLL,
            lambda k: registers.multiply(
                self.rows,
                lambda row: self.data[(channels * self.slots + slot + row) * self.slot + point * self.channels + k],
                lambda c: v.load(self.weights, k * self.line + point * self.machine.panel + c),
            ),
        )

    def _output(self, slot: Value, tile: Value, panel: Value) -> None:
        """Write A^T products A of a tile, finished by the epilogue."""
        v, (height, width), products = self.v, self.shape.result, self.products
        n, row, column = self._place(tile)
        with T.serial(self.machine.panel // v.lanes) as c:
            lane = c * v.lanes
            with T.serial(products) as x:
                values = [
                    T.bind(v.load(self.sums, (y * products + x) * (self.slots + 1) + slot, lane))
                    for y in range(products)
                ]
                for y, value in enumerate(transform(v, self.filter.at, values)):
                    v.store(self.square, value, y * products + x, 0)
            with T.serial(T.min(self.m, height - row * self.m)) as y:
                values = [T.bind(v.load(self.square, y * products + x, 0)) for x in range(products)]
                pixel = (n * height + row * self.m + y) * width + column * self.m
                for x, value in enumerate(transform(v, self.filter.at, values)):
                    store = self._store(value, pixel + x, panel * self.machine.panel + lane)
                    if width % self.m == 0:
                        store()
                        continue
                    with T.If(column * self.m + x < width), T.Then():
                        store()

    def _store(self, value: Value, pixel: Value, channel: Value) -> Callable[[], None]:
        def store() -> None:
            (finished,) = self.epilogue.finish(self.v, [value], pixel, [channel])
            self.epilogue.store(self.v, finished, pixel, channel)

        return store


def _cost(shape: ConvShape, machine: Machine, m: int) -> float:
    """Estimate the multiply-adds of F(m x m), transforms included, a transform's element at what its memory costs."""
    filter_ = minimal_filter(m, shape.upsample)
    points = filter_.products**2
    tiles = shape.batch * math.prod(-(-extent // m) for extent in shape.result)
    groups = _groups(tiles, shape.inputs, points, machine)
    slots = groups.count * groups.blocks * (groups.rows + BLOCK_COST)
    multiplies = slots * shape.inputs * shape.outputs
    transforms = TRANSFORM_COST * tiles * (shape.inputs + shape.outputs)
    weights = WEIGHT_COST * groups.count * shape.inputs * shape.outputs
    return points * (multiplies + transforms + weights) / EFFICIENCY[m]


def accepts(shape: ConvShape, machine: Machine) -> bool:
    """Tell whether the kernel takes it: 3x3, stride 1, whole vectors of inputs and whole panels of outputs."""
    plain = shape.kernel == (3, 3) and shape.stride == (1, 1)
    return plain and shape.inputs % machine.lanes == 0 and shape.outputs % machine.panel == 0


def upsamples(shape: ConvShape, factor: int, machine: Machine) -> bool:
    """Tell whether it can read an input that is upsampled by ``factor`` on the way."""
    fits = (machine.winograd_tile or OUTPUT_TILES[-1]) % factor == 0
    return factor == 1 or (fits and shape.padding == (1, 1, 1, 1) and min(shape.height, shape.width) >= factor)


def cheapest_tile(shape: ConvShape, machine: Machine) -> tuple[int, float]:
    """Return m and estimated cost of the cheapest F(m x m), or of the one that the machine is told to use."""
    if machine.winograd_tile is not None:
        return machine.winograd_tile, 0.0
    tiles = (m for m in OUTPUT_TILES if m % shape.upsample == 0)
    return min(((m, _cost(shape, machine, m)) for m in tiles), key=lambda choice: choice[1])


def winograd(
    shape: ConvShape, operand_rows: Sequence[int], machine: Machine, m: int, tiling: Tiling = Tiling()
) -> tirx.PrimFunc:
    """Return the convolution by F(m x m, 3 x 3) as a function of x [N, H, W, CI], w [CO / panel, 9 CI, panel], the
    epilogue's operands and y [pixels, CO]."""
    return prim_func(_Winograd(shape, operand_rows, machine, m, tiling).body)
