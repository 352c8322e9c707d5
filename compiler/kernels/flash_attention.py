"""Attention with an online softmax: the score matrix is never stored.

Queries sit in the vector lanes, two vectors at a time: tiles S^T[key][query] and O^T[size][query]. Keys and values are
then only broadcast from their own layout, maximum and sum are vertical, and a tail of keys is a shorter tile.
A task is one head and a few query blocks; per block of keys it reads keys and values once for all of its queries,
so memory traffic is tokens^2 / (queries a task) instead of tokens^2.
Sources: Dao et al., FlashAttention (2022); Milakov and Gimelshein, Online normalizer calculation for softmax (2018).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import tvm.tirx.script.builder.ir as T
from tvm import tirx

from compiler.kernels.tiling import choice
from compiler.kernels.tir import Value, Vectors, argument, local, prim_func, steps, tile_size, tiles

COLUMNS = 2  # vectors of queries in a block
KEY_BLOCK = 120  # keys a block: scores of one query block stay in the first cache level
QUERY_BLOCKS = 8  # query blocks a task
MASKED = -1e30  # finite, so that the difference of two is not NaN


@dataclass(frozen=True)
class AttentionShape:
    """Batch, heads, queries, keys and head sizes; ``offset`` is None, or key <= query + offset is what is seen."""

    batch: int
    heads: int
    queries: int
    keys: int
    size: int
    value_size: int
    scale: float
    offset: int | None

    @property
    def output(self) -> list[int]:
        """Shape of the result, [B, queries, heads, value size]."""
        return [self.batch, self.queries, self.heads, self.value_size]


@dataclass(frozen=True)
class Tiling:
    """Keys a block, and query blocks a task, at most."""

    keys: int = choice(KEY_BLOCK, 48, 72, 240, 480)
    query_blocks: int = choice(QUERY_BLOCKS, 1, 2, 4, 16)


class _FlashAttention:
    """Writes the statements of one kernel; the methods follow the order of the algorithm."""

    def __init__(self, shape: AttentionShape, lanes: int, registers: int, tiling: Tiling) -> None:
        self.shape = shape
        self.v = Vectors(lanes)
        self.width = COLUMNS * lanes
        self.tile = (registers - registers // 4) // COLUMNS  # accumulators leave a quarter for operands
        self.columns = [column * lanes for column in range(COLUMNS)]
        blocks = -(-shape.queries // self.width)
        self.group = min(tiling.query_blocks, blocks)
        self.groups = -(-blocks // self.group)
        self.key_block = min(tiling.keys, shape.keys)

    def body(self) -> None:
        """Declare the arguments [B, tokens, heads, size] and run one task per head and group of query blocks."""
        s = self.shape
        self.q = argument("query", (s.batch, s.queries, s.heads, s.size))
        self.k = argument("key", (s.batch, s.keys, s.heads, s.size))
        self.value = argument("value", (s.batch, s.keys, s.heads, s.value_size))
        self.out = argument("output", (s.batch, s.queries, s.heads, s.value_size))
        with T.parallel(s.batch * s.heads * self.groups) as task:
            self.n, self.h = task // (s.heads * self.groups), task // self.groups % s.heads
            self.first = task % self.groups * (self.width * self.group)
            self._allocate()
            with T.serial(self.group) as block:
                self._load_queries(block)
            tiles(s.keys, self.key_block, self._key_block)
            with T.serial(self.group) as block:
                self._store(block)

    def _allocate(self) -> None:
        s, group, width = self.shape, self.group, self.width
        self.qt, self.ot = local(group, s.size, width), local(group, s.value_size, width)
        self.scores, self.acc = local(self.key_block, width), local(self.tile, width)
        self.top, self.total = local(group, width), local(group, width)
        self.now = local(3, width)  # of the block at hand: maximum, rescale factor, sum

    def _query(self, block: Value, lane: Value) -> Value:
        return self.first + block * self.width + lane

    def _load_queries(self, block: Value) -> None:
        """Transpose the queries, scaled so that exp2 serves as exp; beyond the last one it is repeated."""
        s = self.shape
        scale = T.float32(s.scale * math.log2(math.e))
        with T.serial(self.width) as lane:
            row = T.min(self._query(block, lane), s.queries - 1)
            with T.serial(s.size) as d:
                T.buffer_store(self.qt, self.q[self.n, row, self.h, d] * scale, [block, d, lane])
        for c in self.columns:
            self.v.store(self.top, self.v.all(MASKED), block, c)
            self.v.store(self.total, self.v.all(0.0), block, c)
        with T.serial(s.value_size) as d:
            for c in self.columns:
                self.v.store(self.ot, self.v.all(0.0), block, d, c)

    def _key_block(self, start: Value, count: int) -> None:
        with T.serial(self.group) as block:
            for c in self.columns:
                self.v.store(self.now, self.v.load(self.top, block, c), 0, c)
            key_tile, value_tile = (tile_size(n, self.tile) for n in (count, self.shape.value_size))
            tiles(count, key_tile, lambda k, rows: self._scores(block, start, k, rows))
            self._rescale(block)
            steps(count, 4, self._exponentials)
            for c in self.columns:
                self.v.store(self.total, self.v.load(self.now, 2, c), block, c)
            tiles(self.shape.value_size, value_tile, lambda d, rows: self._mix(block, start, count, d, rows))

    def _scores(self, block: Value, start: Value, key: Value, rows: int) -> None:
        """S^T of ``rows`` keys x a block of queries, and the running maximum."""
        v = self.v
        for row in range(rows):
            for c in self.columns:
                v.store(self.acc, v.all(0.0), row, c)

        def multiply(d: Value) -> None:
            for row in range(rows):
                for c in self.columns:
                    factor = v.all(self.k[self.n, start + key + row, self.h, d])
                    v.store(self.acc, v.load(self.acc, row, c) + factor * v.load(self.qt, block, d, c), row, c)

        steps(self.shape.size, 4, multiply)
        for row in range(rows):
            for c in self.columns:
                score = T.bind(self._mask(v.load(self.acc, row, c), start + key + row, self._query(block, c)))
                v.store(self.now, T.max(v.load(self.now, 0, c), score), 0, c)
                v.store(self.scores, score, key + row, c)

    def _mask(self, score: Value, key: Value, query: Value) -> Value:
        if self.shape.offset is None:
            return score
        last = T.ramp(query + self.shape.offset, 1, self.v.lanes)
        return T.Select(T.broadcast(key, self.v.lanes) <= last, score, self.v.all(MASKED))

    def _rescale(self, block: Value) -> None:
        """Compute what earlier blocks are scaled by, now that the maximum may have grown."""
        v = self.v
        grown = [v.load(self.top, block, c) - v.load(self.now, 0, c) for c in self.columns]
        for c, factor in zip(self.columns, v.exp2(grown), strict=True):
            v.store(self.now, factor, 1, c)
            v.store(self.top, v.load(self.now, 0, c), block, c)
            v.store(self.now, v.load(self.total, block, c) * v.load(self.now, 1, c), 2, c)

    def _exponentials(self, key: Value) -> None:
        v = self.v
        powers = v.exp2([v.load(self.scores, key, c) - v.load(self.now, 0, c) for c in self.columns])
        for c, power in zip(self.columns, powers, strict=True):
            v.store(self.now, v.load(self.now, 2, c) + power, 2, c)
            v.store(self.scores, power, key, c)

    def _mix(self, block: Value, start: Value, count: int, d: Value, rows: int) -> None:
        """O^T of ``rows`` values of the head size: rescale, then add the block's keys."""
        v = self.v
        for row in range(rows):
            for c in self.columns:
                v.store(self.acc, v.load(self.ot, block, d + row, c) * v.load(self.now, 1, c), row, c)

        def multiply(key: Value) -> None:
            for row in range(rows):
                for c in self.columns:
                    factor = v.all(self.value[self.n, start + key, self.h, d + row])
                    v.store(self.acc, v.load(self.acc, row, c) + factor * v.load(self.scores, key, c), row, c)

        steps(count, 4, multiply)
        for row in range(rows):
            for c in self.columns:
                v.store(self.ot, v.load(self.acc, row, c), block, d + row, c)

    def _store(self, block: Value) -> None:
        with T.serial(self.width) as lane:
            row = self._query(block, lane)
            with T.If(row < self.shape.queries):
                with T.Then():
                    with T.serial(self.shape.value_size) as d:
                        value = self.ot[block, d, lane] / self.total[block, lane]
                        T.buffer_store(self.out, value, [self.n, row, self.h, d])


def flash_attention(shape: AttentionShape, lanes: int, registers: int, tiling: Tiling = Tiling()) -> tirx.PrimFunc:
    """Return attention over float32 [B, tokens, heads, size] as a function of query, key, value and output."""
    return prim_func(_FlashAttention(shape, lanes, registers, tiling).body)
