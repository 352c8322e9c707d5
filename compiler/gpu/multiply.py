"""Convolution and multiply on tensor cores, NHWC, in 16 bits: a product whose left rows are gathered as they are read.

Y[pixels, CO] = X W + epilogue; row p of X has the KH x KW x CI numbers that pixel p of the result depends on, zeros
beyond the picture. Weights are packed [CO][KH][KW][CI]. A multiply is the 1x1 convolution of a picture of one column.
Source: Chetlur et al., cuDNN: Efficient Primitives for Deep Learning (2014), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import tvm.tirx.script.builder.ir as T
from tvm import tirx

from compiler.gpu.machine import Gpu
from compiler.gpu.product import Product, Tile
from compiler.gpu.threads import Scalars, at, call, grid, store_pair, unrolled
from compiler.kernels.conv2d import ConvShape
from compiler.kernels.epilogue import GEGLU, Epilogue
from compiler.kernels.sources import Sources
from compiler.kernels.tir import Value, argument, prim_func

TILES = (
    Tile(128, 128, (2, 4)),
    Tile(128, 64, (4, 2)),
    Tile(64, 64, (2, 2)),
    Tile(64, 32, (2, 1)),
)
ENOUGH = 0.75  # of a wave of blocks, that a tile is taken


def best_tile(rows: int, columns: int, gpu: Gpu) -> Tile:
    """Return the largest tile that gives most multiprocessors a block."""
    for tile in TILES:
        blocks = -(-rows // tile.rows) * -(-columns // tile.columns)
        if blocks >= ENOUGH * gpu.multiprocessors:
            return tile
    return TILES[-1]


class _Rows:
    """The rows of weights, [columns, depth]."""

    def __init__(self, buffer: Value, count: int, depth: int, first: Value) -> None:
        self.buffer, self.count, self.depth, self.first = buffer, count, depth, first

    def start(self, pieces: int, row: Callable[[int], Value]) -> None:
        self.index = [T.bind(self.first + row(piece)) for piece in range(pieces)]

    def copy(self, to: Value, piece: int, k: Value) -> None:
        inside = tirx.all(self.index[piece] < self.count, k < self.depth)
        place = T.Select(inside, self.index[piece] * self.depth + k, 0)
        call("tvmerge_copy", to, at(self.buffer, place), inside.astype("int32"))


class _Pixels:
    """What the pixels of the result depend on, gathered from the sources [N, H, W, widths[i]]."""

    def __init__(self, sources: Sources, shape: ConvShape, first: Value) -> None:
        self.sources, self.shape, self.first = sources, shape, first

    def start(self, pieces: int, row: Callable[[int], Value]) -> None:
        """Find the picture of each pixel and where its window begins."""
        s = self.shape
        height, width = s.result
        self.windows = []
        for piece in range(pieces):
            pixel = T.bind(self.first + row(piece))
            n, rest = T.floordiv(pixel, height * width), T.bind(T.floormod(pixel, height * width))
            top = T.bind(T.floordiv(rest, width) * s.stride[0] - s.padding[0])
            left = T.bind(T.floormod(rest, width) * s.stride[1] - s.padding[1])
            self.windows.append((pixel < s.pixels, T.bind(n), top, left))

    def copy(self, to: Value, piece: int, k: Value) -> None:
        s = self.shape
        there, n, top, left = self.windows[piece]
        tap, channel = T.floordiv(k, s.inputs), T.bind(T.floormod(k, s.inputs))
        y = T.bind(top + T.floordiv(tap, s.kernel[1]))
        x = T.bind(left + T.floormod(tap, s.kernel[1]))
        deep = k < math.prod(s.kernel) * s.inputs
        inside = T.bind(tirx.all(there, deep, y >= 0, y < s.height, x >= 0, x < s.width))
        height, width = s.height // s.upsample, s.width // s.upsample
        pixel = T.bind((n * height + T.floordiv(y, s.upsample)) * width + T.floordiv(x, s.upsample))
        spans = self.sources.spans()
        for source, low, high in spans:
            place = T.Select(inside, pixel * (high - low) + channel - low, 0)
            if len(spans) == 1:
                call("tvmerge_copy", to, at(source, place), inside.astype("int32"))
                continue
            with T.If(tirx.all(channel >= low, channel < high)), T.Then():
                call("tvmerge_copy", to, at(source, place), inside.astype("int32"))


class _Tail(Epilogue):
    """The epilogue in 16 bits; a gated tile has eight columns of values, then eight of gates."""

    def __init__(self, operand_rows: Sequence[int], shape: ConvShape, activation: str | None, results: int, dtype: str):
        super().__init__(operand_rows, shape.pixels, shape.outputs, activation, results, dtype)
        self.scalars = Scalars()

    def write(self, product: Product, first_row: Value, first_column: Value) -> None:
        """Finish the sums of a tile and store them."""
        step = 2 if self.activation == GEGLU else 1

        def finish(row: Value, pair: Callable[[Value], list[Value]], column: Callable[[Value], Value]) -> None:
            index = T.bind(first_row + row)
            with T.If(index < self.rows), T.Then():
                with unrolled(product.along // step) as fragment:
                    j = fragment * step
                    sums = [T.bind(value) for i in range(step) for value in pair(j + i)]
                    write = self._write if step == 1 else self._write_gated
                    write(index, T.bind(first_column + column(j)), sums)

        product.each_row(finish)

    def _write(self, row: Value, column: Value, sums: Sequence[Value]) -> None:
        if self.channels % 2:  # pairs would not lie at even addresses
            for i, value in enumerate(sums):
                with T.If(column + i < self.channels), T.Then():
                    (finished,) = self.finish(self.scalars, [value], row, [column + i])
                    self.scalars.store(self.outputs[0], finished, row, column + i)
            return
        with T.If(column < self.channels), T.Then():
            self._store(row, column, self.finish(self.scalars, sums, row, [column, column + 1]))

    def _write_gated(self, row: Value, packed: Value, sums: Sequence[Value]) -> None:
        """Columns 16 i to 16 i + 7 of packed weights are values 8 i and following, and then their gates."""
        column = T.bind(T.floordiv(packed, 16) * 8 + T.floormod(packed, 8))
        with T.If(column < self.width), T.Then():
            pairs = zip(sums[:2], sums[2:], strict=True)
            channels = [[column + i, column + i + self.channels // 2] for i in range(2)]
            finished = [self.finish(self.scalars, both, row, c)[0] for both, c in zip(pairs, channels, strict=True)]
            self._store(row, column, finished)

    def _store(self, row: Value, column: Value, values: Sequence[Value]) -> None:
        for index, output in enumerate(self.outputs):
            place = row * self.width + column - index * self.width
            if self.results == 1:
                store_pair(output, place, *values)
                continue
            with T.If(T.floordiv(column, self.width) == index), T.Then():
                store_pair(output, place, *values)


def multiply(
    shape: ConvShape,
    operand_rows: Sequence[int],
    gpu: Gpu,
    activation: str | None = None,
    results: int = 1,
    widths: Sequence[int] = (),
) -> tirx.PrimFunc:
    """Return convolution + epilogue as a function of x [N, H, W, CI], packed w, the epilogue's operands and results.

    ``activation``, ``results`` and ``widths``: see ``compiler.kernels.matmul``; gated weights alternate eight rows of
    values and eight of gates.
    """
    depth = math.prod(shape.kernel) * shape.inputs
    tile = best_tile(shape.pixels, shape.outputs, gpu)

    def body() -> None:
        sources = Sources(widths or [shape.inputs], gpu.dtype)
        sources.declare((shape.batch, shape.height // shape.upsample, shape.width // shape.upsample))
        weights = argument("w", (shape.outputs, depth), gpu.dtype)
        tail = _Tail(operand_rows, shape, activation, results, gpu.dtype)
        tail.declare()
        blocks = (-(-shape.pixels // tile.rows), -(-shape.outputs // tile.columns))
        with grid(tile.threads, *blocks) as (thread, across, along):
            product = Product(tile, gpu.dtype, thread)
            first_row, first_column = T.bind(across * tile.rows), T.bind(along * tile.columns)
            right = _Rows(weights, shape.outputs, depth, first_column)
            product.run(_Pixels(sources, shape, first_row), right, depth)
            tail.write(product, first_row, first_column)

    return prim_func(body)
