"""Bipartite soft matching of tokens: which sources go to which destination.

Source tokens sit in the vector lanes, two vectors at a time, and meet all destinations; the best similarity and who has
it stay in registers, so the score matrix is never stored. The sources that leave are found by a threshold, which is
bisected, and not by sorting. Semantics: ``models.token_merging.match_tokens``.
"""

from __future__ import annotations

from dataclasses import dataclass

import tvm.tirx.script.builder.ir as T
from tvm import tirx

from compiler.kernels.register_tile import COLUMNS, Machine
from compiler.kernels.tir import Value, Vectors, argument, local, prim_func, scratch, steps, tile_size, tiles

WORST = -2.0  # below any cosine
BISECTIONS = 34  # of an interval of 4: finer than float32 near 1
STRIPES = 8  # stripes of tokens per core


@dataclass(frozen=True)
class MatchShape:
    """Tokens of ``batch`` pictures of ``height`` x ``width``, cells of ``stride`` (y, x); ``merged`` are to leave."""

    batch: int
    height: int
    width: int
    channels: int
    stride: tuple[int, int]
    merged: int

    @property
    def tokens(self) -> int:
        """Tokens of a picture."""
        return self.height * self.width

    @property
    def cells(self) -> tuple[int, int]:
        """Whole cells, down and across."""
        return self.height // self.stride[0], self.width // self.stride[1]

    @property
    def destinations(self) -> int:
        """One a cell."""
        return self.cells[0] * self.cells[1]

    @property
    def sources(self) -> int:
        """All other tokens."""
        return self.tokens - self.destinations

    def destination(self, index: Value) -> Value:
        """Return the token that is destination ``index``."""
        across = self.cells[1]
        return index // across * (self.stride[0] * self.width) + index % across * self.stride[1]

    def source(self, index: Value) -> Value:
        """Return the token that is source ``index``: those of the cells, then what is right of them, then below."""
        (down, across), (sy, sx) = self.cells, self.stride
        rest = sy * sx - 1
        tall, wide = down * sy, across * sx
        token, begin = None, 0
        if rest:
            cell, inner = index // rest, index % rest + 1
            token = (cell // across * sy + inner // sx) * self.width + cell % across * sx + inner % sx
            begin = self.destinations * rest
        if wide < self.width:
            left = T.max(index - begin, 0)
            beside = left // (self.width - wide) * self.width + wide + left % (self.width - wide)
            token = beside if token is None else T.Select(index < begin, token, beside)
            begin += tall * (self.width - wide)
        if tall < self.height:
            below = tall * self.width + index - begin
            token = below if token is None else T.Select(index < begin, token, below)
        return token


class Matching:
    """Writes the statements of one kernel; the methods follow the order of the algorithm."""

    def __init__(self, shape: MatchShape, machine: Machine) -> None:
        self.shape, self.machine = shape, machine
        self.v = Vectors(machine.lanes)
        self.width = COLUMNS * machine.lanes
        self.columns = [column * machine.lanes for column in range(COLUMNS)]
        self.blocks = -(-shape.sources // self.width)

    def body(self) -> None:
        """Declare the arguments [B, N, C] and [B, N] and match picture by picture, block by block of sources."""
        s = self.shape
        self.x = argument("tokens", (s.batch, s.tokens, s.channels))
        self.slots = argument("slots", (s.batch, s.tokens), "int32")
        self.inverse = scratch((s.batch, s.tokens))  # of the tokens' lengths
        self.best, self.nearest = (scratch((s.batch, self.blocks * self.width)) for _ in range(2))
        stripes = min(STRIPES * self.machine.cores, s.tokens)
        stripe = -(-s.tokens // stripes)
        with T.parallel(s.batch * stripes) as task:
            first = task % stripes * stripe
            self._lengths(task // stripes, first, T.min(first + stripe, s.tokens))
        self.prepare()
        with T.parallel(s.batch * self.blocks) as task:
            self.search(task // self.blocks, task % self.blocks)
        with T.parallel(s.batch) as n:
            self._choose(n)

    def _lengths(self, n: Value, first: Value, end: Value) -> None:
        s = self.shape
        lanes = max(d for d in range(1, self.machine.lanes + 1) if s.channels % d == 0)
        v, sums = Vectors(lanes), local(lanes)
        with T.serial(first, end) as token:
            v.store(sums, v.all(0.0), 0)
            with T.serial(s.channels // lanes) as block:
                value = T.bind(v.load(self.x, n, token, block * lanes))
                v.store(sums, v.load(sums, 0) + value * value, 0)
            total = sums[0]
            for lane in range(1, lanes):
                total = total + sums[lane]
            T.buffer_store(self.inverse, T.float32(1) / T.sqrt(total), [n, token])

    def prepare(self) -> None:
        """Make what all blocks need."""

    def source_token(self, block: Value, lane: Value) -> Value:
        """Return the token of a source; beyond the last one it is repeated."""
        return self.shape.source(T.min(block * self.width + lane, self.shape.sources - 1))

    def search(self, n: Value, block: Value) -> None:
        """Find the best destination of each source of a block."""
        s = self.shape
        tile = tile_size(s.destinations, self.machine.rows)
        self.turned, self.accumulators = local(s.channels, self.width), local(tile, self.width)
        self.now = local(2, self.width)  # best score so far and its destination
        with T.serial(self.width) as lane:
            token = T.bind(self.source_token(block, lane))
            with T.serial(s.channels) as c:
                T.buffer_store(self.turned, self.x[n, token, c], [c, lane])
        self.start()
        tiles(s.destinations, tile, lambda first, rows: self._meet(n, first, rows))
        self.finish(n, block)

    def start(self) -> None:
        """Begin a block: nothing found yet."""
        for c in self.columns:
            self.v.store(self.now, self.v.all(WORST), 0, c)
            self.v.store(self.now, self.v.all(0.0), 1, c)

    def _meet(self, n: Value, first: Value, rows: int) -> None:
        v = self.v
        for row in range(rows):
            for c in self.columns:
                v.store(self.accumulators, v.all(0.0), row, c)
        tokens = [T.bind(self.shape.destination(first + row)) for row in range(rows)]

        def multiply(channel: Value) -> None:
            for row, token in enumerate(tokens):
                for c in self.columns:
                    product = v.all(self.x[n, token, channel]) * v.load(self.turned, channel, c)
                    v.store(self.accumulators, v.load(self.accumulators, row, c) + product, row, c)

        steps(self.shape.channels, 4, multiply)
        for row, token in enumerate(tokens):
            for c in self.columns:
                score = v.load(self.accumulators, row, c) * v.all(self.inverse[n, token])
                self.compare(score, first + row, c)

    def compare(self, score: Value, destination: Value, column: int) -> None:
        """Keep the better of what was found and of a destination's scores."""
        v, score = self.v, T.bind(score)
        before = T.bind(v.load(self.now, 0, column))
        index = v.all(T.Cast("float32", destination))
        v.store(self.now, T.Select(score > before, index, v.load(self.now, 1, column)), 1, column)
        v.store(self.now, T.max(score, before), 0, column)

    def finish(self, n: Value, block: Value) -> None:
        """Store what a block found, the scores as cosines."""
        with T.serial(self.width) as lane:
            place = block * self.width + lane
            score = self.now[0, lane] * self.inverse[n, self.source_token(block, lane)]
            T.buffer_store(self.best, T.Select(place < self.shape.sources, score, T.float32(WORST)), [n, place])
            T.buffer_store(self.nearest, self.now[1, lane], [n, place])

    def _choose(self, n: Value) -> None:
        """Give every token its slot."""
        s = self.shape
        state = local(4)  # lower and upper bound, still to leave of those between, alone so far
        T.buffer_store(state, T.float32(WORST), [0])
        T.buffer_store(state, T.float32(-WORST), [1])
        with T.serial(BISECTIONS):
            middle = T.bind((state[0] + state[1]) * T.float32(0.5))
            enough = T.bind(self._above(n, middle) >= T.float32(s.merged))
            T.buffer_store(state, T.Select(enough, middle, state[0]), [0])
            T.buffer_store(state, T.Select(enough, state[1], middle), [1])
        T.buffer_store(state, T.float32(s.merged) - self._above(n, T.bind(state[1])), [2])
        T.buffer_store(state, T.float32(s.destinations), [3])
        with T.serial(s.destinations) as d:
            T.buffer_store(self.slots, T.Cast("int32", d), [n, s.destination(d)])
        with T.serial(s.sources) as index:
            score = T.bind(self.best[n, index])
            between = T.bind(T.Select(tirx.all(score > state[0], score <= state[1], state[2] > T.float32(0)), 1.0, 0.0))
            leaves = T.bind(tirx.any(score > state[1], between > T.float32(0)))
            slot = T.Select(leaves, self.nearest[n, index], T.min(state[3], T.float32(s.tokens - s.merged - 1)))
            T.buffer_store(self.slots, T.Cast("int32", slot), [n, s.source(index)])
            T.buffer_store(state, state[2] - between, [2])
            T.buffer_store(state, state[3] + T.Select(leaves, T.float32(0), T.float32(1)), [3])

    def _above(self, n: Value, bound: Value) -> Value:
        """Count the sources whose score is above ``bound``."""
        v, counts = self.v, local(self.width)
        for c in self.columns:
            v.store(counts, v.all(0.0), c)
        with T.serial(self.blocks) as block:
            for c in self.columns:
                above = v.load(self.best, n, block * self.width + c) > v.all(bound)
                v.store(counts, v.load(counts, c) + T.Select(above, v.all(1.0), v.all(0.0)), c)
        total = counts[0]
        for lane in range(1, self.width):
            total = total + counts[lane]
        return T.bind(total)


def token_matching(shape: MatchShape, machine: Machine) -> tirx.PrimFunc:
    """Return the matching as a function of float32 tokens [B, N, C] and int32 slots [B, N]."""
    return prim_func(Matching(shape, machine).body)
