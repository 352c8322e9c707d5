"""Bipartite soft matching of tokens on tensor cores, in 16 bits, sums in float32: four launches.

1. The inverse lengths of the tokens.
2. A block takes 64 sources, which meet all destinations, 96 at a time. The best cosine of each and its destination
   stay in registers, so the score matrix is never stored.
3. Who of the sources leaves is told by rank, without a sort: those are the first by score, of equal scores by index.
   Each source counts who is ahead of it; the last that leaves is kept.
4. Slots: a source that stays has one after those that stay before it.

Semantics: ``models.token_merging.match_tokens``; slots are numbered as in ``compiler.kernels.token_matching``.
"""

from __future__ import annotations

from collections.abc import Callable

import tvm.tirx.script.builder.ir as T
from tvm import tirx

from compiler.gpu.machine import Gpu
from compiler.gpu.product import Product, Tile
from compiler.gpu.threads import (
    NARROW,
    QUAD,
    SUMS,
    WARP,
    Scalars,
    at,
    call,
    fill,
    grid,
    join_lanes,
    registers,
    shared,
    swap,
    synchronise,
    unrolled,
)
from compiler.kernels.tir import Value, argument, prim_func, scratch
from compiler.kernels.token_matching import WORST, MatchShape

WARPS = 4
TILE = Tile(64, 96, (WARPS, 1))  # a source is in one warp, there in a quad of lanes
ROWS = 2  # sources of a lane
THREADS = 256  # each with one source


class _Tokens:
    """Some tokens of a picture as rows of a product; ``token(i)`` is the i-th of ``count``."""

    def __init__(self, buffer: Value, n: Value, token: Callable[[Value], Value], count: int, first: Value) -> None:
        self.buffer, self.n, self.token, self.count, self.first = buffer, n, token, count, first

    def start(self, pieces: int, row: Callable[[int], Value]) -> None:
        """Find where rows begin; beyond the last token it is repeated."""
        _, tokens, channels = (int(extent) for extent in self.buffer.shape)
        indices = [T.min(self.first + row(piece), self.count - 1) for piece in range(pieces)]
        self.begin = [T.bind((self.n * tokens + self.token(index)) * channels) for index in indices]

    def copy(self, to: Value, piece: int, k: Value) -> None:
        inside = k < int(self.buffer.shape[2])
        place = T.Select(inside, self.begin[piece] + k, 0)
        call("tvmerge_copy", to, at(self.buffer, place), inside.astype("int32"))


def _ahead(score: Value, index: Value, other_score: Value, other_index: Value) -> Value:
    """Tell whether a score comes before another: the higher first, of equal ones that of the lower index."""
    return tirx.any(score > other_score, tirx.all(score == other_score, index < other_index))


class _Matching:
    """Writes the statements of one kernel; the methods follow the order of the launches."""

    def __init__(self, shape: MatchShape, gpu: Gpu) -> None:
        self.shape, self.dtype = shape, gpu.dtype
        self.scalars = Scalars()

    def body(self) -> None:
        """Declare the arguments [B, N, C] and [B, N] and launch."""
        s = self.shape
        self.x = argument("tokens", (s.batch, s.tokens, s.channels), self.dtype)
        self.slots = argument("slots", (s.batch, s.tokens), "int32")
        self.inverse = scratch((s.batch, s.tokens))  # of the lengths: destinations, then sources
        self.best, self.nearest = (scratch((s.batch, s.sources)) for _ in range(2))
        self.last = scratch((s.batch,))  # source that leaves
        with grid(WARP * WARPS, -(-s.tokens // WARPS), s.batch) as (thread, block, n):
            self._lengths(thread, block, n)
        with grid(TILE.threads, -(-s.sources // TILE.rows), s.batch) as (thread, block, n):
            self._search(Product(TILE, self.dtype, thread), n, T.bind(block * TILE.rows))
        with grid(THREADS, -(-s.sources // THREADS), s.batch) as (thread, block, n):
            self._rank(thread, T.bind(block * THREADS + thread), n)
        with grid(THREADS, -(-max(s.sources, s.destinations) // THREADS), s.batch) as (thread, block, n):
            self._number(thread, T.bind(block * THREADS + thread), n)

    def _lengths(self, thread: Value, block: Value, n: Value) -> None:
        s, total = self.shape, registers(1)
        lane, index = T.bind(T.floormod(thread, WARP)), T.bind(block * WARPS + T.floordiv(thread, WARP))
        with T.If(index < s.tokens), T.Then():  # the same for all lanes of a warp
            source = s.source(T.max(index - s.destinations, 0))
            token = T.bind(T.Select(index < s.destinations, s.destination(index), source))
            fill(total, 0.0)
            with T.serial(-(-s.channels // WARP)) as i:
                channel = T.bind(i * WARP + lane)
                with T.If(channel < s.channels), T.Then():
                    value = T.bind(self.scalars.load(self.x, n, token, channel))
                    T.buffer_store(total, total[0] + value * value, [0])
            join_lanes(total, 0, lambda a, b: a + b)
            with T.If(lane == 0), T.Then():
                T.buffer_store(self.inverse, T.float32(1) / T.sqrt(total[0]), [n, index])

    def _search(self, product: Product, n: Value, first: Value) -> None:
        """Find the best destination of 64 sources."""
        s = self.shape
        best, nearest = registers(ROWS), registers(ROWS)
        fill(best, WORST)
        fill(nearest, 0.0)
        with T.serial(-(-s.destinations // TILE.columns)) as tile:
            begin = T.bind(tile * TILE.columns)
            product.run(
                _Tokens(self.x, n, s.source, s.sources, first),
                _Tokens(self.x, n, s.destination, s.destinations, begin),
                s.channels,
            )
            synchronise()  # the next tile takes the place of this one
            with unrolled(product.along * SUMS) as i:
                row, part = T.floordiv(T.floormod(i, SUMS), 2), T.floormod(i, 2)
                column = T.floordiv(i, SUMS) * NARROW + T.floormod(product.lane, QUAD) * 2 + part
                destination = T.bind(begin + column)
                with T.If(destination < s.destinations), T.Then():
                    score = T.bind(product.sums[i] * self.inverse[n, destination])
                    with T.If(score > best[row]), T.Then():
                        T.buffer_store(best, score, [row])
                        T.buffer_store(nearest, destination.astype("float32"), [row])
        with unrolled(ROWS) as row:
            source = T.bind(first + product.first_row + T.floordiv(product.lane, QUAD) + row * 8)
            self._join(best, nearest, row)
            with T.If(tirx.all(T.floormod(product.lane, QUAD) == 0, source < s.sources)), T.Then():
                score = T.bind(best[row] * self.inverse[n, s.destinations + source])
                known = T.Select(score > T.float32(WORST), score, T.float32(WORST))  # no number: none is worse
                T.buffer_store(self.best, known, [n, source])
                T.buffer_store(self.nearest, nearest[row], [n, source])

    @staticmethod
    def _join(best: Value, nearest: Value, row: Value) -> None:
        """Have the lanes of a quad agree."""
        for mask in (1, 2):
            score, index = T.bind(swap(best[row], mask)), T.bind(swap(nearest[row], mask))
            with T.If(_ahead(score, index, best[row], nearest[row])), T.Then():
                T.buffer_store(best, score, [row])
                T.buffer_store(nearest, index, [row])

    def _count(self, thread: Value, n: Value, counts: Callable[[Value, Value], Value]) -> Value:
        """Return a register with the number of sources for which ``counts(score, index)``; all threads take part."""
        s, scores, total = self.shape, shared((THREADS,), "float32"), registers(1)
        fill(total, 0.0)
        with T.serial(-(-s.sources // THREADS)) as block:
            first = T.bind(block * THREADS)
            synchronise()
            T.buffer_store(scores, self.best[n, T.min(first + thread, s.sources - 1)], [thread])
            synchronise()
            with T.serial(T.min(s.sources - first, THREADS)) as i:
                one = T.Select(counts(scores[i], first + i), T.float32(1), T.float32(0))
                T.buffer_store(total, total[0] + one, [0])
        return total

    def _rank(self, thread: Value, source: Value, n: Value) -> None:
        s = self.shape
        mine = T.bind(self.best[n, T.min(source, s.sources - 1)])
        rank = self._count(thread, n, lambda score, index: _ahead(score, index, mine, source))
        with T.If(tirx.all(source < s.sources, rank[0] == T.float32(s.merged - 1))), T.Then():
            T.buffer_store(self.last, source.astype("float32"), [n])

    def _number(self, thread: Value, index: Value, n: Value) -> None:
        """Give the destination and the source of this index their slots."""
        s = self.shape
        last = T.bind(self.last[n].astype("int32"))
        bound = T.bind(self.best[n, last])

        def leaves(score: Value, source: Value) -> Value:
            return tirx.Not(_ahead(bound, last, score, source))

        left = self._count(thread, n, lambda score, source: tirx.all(source < index, leaves(score, source)))
        with T.If(index < s.destinations), T.Then():
            T.buffer_store(self.slots, index, [n, s.destination(index)])
        with T.If(index < s.sources), T.Then():
            alone = T.float32(s.destinations) + index.astype("float32") - left[0]
            slot = T.Select(leaves(self.best[n, index], index), self.nearest[n, index], alone)
            T.buffer_store(self.slots, slot.astype("int32"), [n, s.source(index)])


def token_matching(shape: MatchShape, gpu: Gpu) -> tirx.PrimFunc:
    """Return the matching as a function of tokens [B, N, C] and int32 slots [B, N]; channels come in chunks of 8."""
    return prim_func(_Matching(shape, gpu).body)
