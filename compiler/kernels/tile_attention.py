"""Attention with an online softmax in tiles of words: float32 split into bfloat16 parts on the way to the multiply.

As in flash_attention.py the queries sit in the vector lanes, and the score matrix is never stored. A block is 32
queries; S^T = K Q^T and O^T += V^T P^T are products of 32 x 32 tiles. K's words are its own rows; those of V^T and Q^T
are transposed once. P^T needs no shuffle: a word holds the exponentials of the keys j and j + 16 of a tile.
A task is one head, which first makes the words of its keys and values. Where the heads are too few or too uneven for
the cores, these are made before, and a task is a group of query blocks; so too where the words of all heads fit into
the second cache level, and then the heads of a group come one after another, as their queries lie in memory.
Arithmetic of vectors and tiles hardly overlaps: both need the same port.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tvm.tirx.script.builder.ir as T
from tvm import tirx

from compiler.kernels.flash_attention import MASKED, AttentionShape
from compiler.kernels.register_tile import Machine
from compiler.kernels.shuffle import load_row, store_row, transpose
from compiler.kernels.split import BLOCK, WORD_BYTES, WORDS, split
from compiler.kernels.tiling import choice
from compiler.kernels.tir import Value, Vectors, argument, local, prim_func, scratch, tiles
from compiler.kernels.unit import SIDE, TILE, Product, Words
from compiler.kernels.units import unit

KEY_TILES = 2  # of 32 keys a block: its scores and exponentials stay in the first cache level
QUERY_BLOCKS = 8  # query blocks that share a block of keys in the first cache level
IDLE = 0.1  # share of the cores' time that may be lost to an uneven number of heads
COLUMNS = (0, WORDS)
FLOOR = 1  # of the rounding modes
EXP2_DEGREE = {1: 3, 2: 5}  # 2^f on 0 <= f < 1 to 1e-4 and 2e-7 relative, by parts
UNROLL = 4  # keys of which the maximum is taken at once


@dataclass(frozen=True)
class Tiling:
    """Tiles of 32 keys a block, query blocks a group, and whether a task is a head (1) or a group (2)."""

    key_tiles: int = choice(KEY_TILES, 1, 4, 8)
    query_blocks: int = choice(QUERY_BLOCKS, 2, 4, 16, 32)
    task: int = choice(0, 1, 2)


def accepts(shape: AttentionShape, machine: Machine) -> bool:
    """Tell whether the kernel takes the attention."""
    return machine.unit is not None


class _TileAttention:
    """Writes the statements of one kernel; the methods follow the order of the algorithm."""

    def __init__(self, shape: AttentionShape, machine: Machine, tiling: Tiling) -> None:
        self.shape, self.parts = shape, machine.parts
        self.unit = unit(machine)
        self.v = Vectors(machine.lanes)
        fit = np.polynomial.Chebyshev.interpolate(np.exp2, EXP2_DEGREE[machine.parts], domain=[0, 1])
        self.coefficients = [float(c) for c in fit.convert(kind=np.polynomial.Polynomial).coef]
        self.sizes = -(-shape.size // BLOCK)  # steps of the product of queries and keys
        self.rows = -(-shape.value_size // WORDS) * WORDS  # of O^T
        self.key_tiles = -(-shape.keys // BLOCK)
        self.blocks = -(-shape.queries // TILE)
        heads = shape.batch * shape.heads
        self.group = min(tiling.query_blocks, -(-self.blocks * heads // machine.cores), self.blocks)
        self.groups = -(-self.blocks // self.group)
        words = self.key_tiles * (self.sizes * BLOCK + self.rows) * WORD_BYTES * WORDS * self.parts
        self.near = shape.heads * words <= machine.cache
        balanced = -(-heads // machine.cores) * machine.cores <= heads * (1 + IDLE)
        self.whole = tiling.task == 1 or (tiling.task == 0 and balanced and not self.near)
        self.block_tiles = min(tiling.key_tiles, self.key_tiles)  # tiles of keys a block

    def body(self) -> None:
        """Declare the arguments [B, tokens, heads, size] and run the tasks."""
        s = self.shape
        self.q = argument("query", (s.batch, s.queries, s.heads, s.size))
        self.k = argument("key", (s.batch, s.keys, s.heads, s.size))
        self.value = argument("value", (s.batch, s.keys, s.heads, s.value_size))
        self.out = argument("output", (s.batch, s.queries, s.heads, s.value_size))
        heads = s.batch * s.heads
        if self.whole:
            with T.parallel(heads) as head:
                self._words(1)
                with T.serial(self.key_tiles) as tile:
                    self._split_keys(head, 0, tile)
                self._run(head, 0, T.serial(self.groups))
        else:
            self._words(heads)
            with T.parallel(heads * self.key_tiles) as task:
                head = task // self.key_tiles
                self._split_keys(head, head, task % self.key_tiles)
            with T.parallel(heads * self.groups) as task:
                if self.near:
                    head = task // (s.heads * self.groups) * s.heads + task % s.heads
                    group = task // s.heads % self.groups
                else:
                    head, group = task // self.groups, task % self.groups
                self._run(head, head, T.serial(group, group + 1))

    def _words(self, heads: int) -> None:
        keys, values = (heads, self.key_tiles, self.sizes, BLOCK, WORDS), (heads, self.key_tiles, self.rows, WORDS)
        self.k_words, self.v_words = ([scratch(shape) for _ in range(self.parts)] for shape in (keys, values))

    def _store_words(self, buffers: Sequence[Value], words: Sequence[Value], *index: Value) -> None:
        for buffer, value in zip(buffers, words, strict=True):
            self.v.store(buffer, value, *index)

    def _split_keys(self, head: Value, slot: Value, tile: Value) -> None:
        """Make the words of 32 keys and values; beyond the last key it is repeated."""
        s = self.shape
        n, h = head // s.heads, head % s.heads

        def key(j: Value) -> Value:
            return T.min(tile * BLOCK + j, s.keys - 1) if s.keys % BLOCK else tile * BLOCK + j

        def split_key(start: Value, count: int) -> None:
            with T.serial(BLOCK) as j:
                words = self._split_row(self.k, [n, key(j), h, start], count)
                self._store_words(self.k_words, words, slot, tile, start // BLOCK, j, 0)

        def turn_value(start: Value, count: int) -> None:
            with T.serial(WORDS) as j:
                first, second = (load_row(self.value, [n, key(j + half), h, start], count) for half in (0, WORDS))
                self._store_words(self.v_words, split(first, second, self.parts), slot, tile, start + j, 0)
            for words in self.v_words:
                transpose(words, [slot, tile, start, 0])

        tiles(s.size, BLOCK, split_key)
        tiles(s.value_size, WORDS, turn_value)

    def _split_row(self, buffer: Value, index: Sequence[Value], count: int, scale: float = 1.0) -> list[Value]:
        """Return the words of up to 32 numbers of a row."""
        *outer, first = index
        halves = [
            load_row(buffer, [*outer, first + half], min(WORDS, count - half)) if half < count else self.v.all(0.0)
            for half in (0, WORDS)
        ]
        if scale != 1.0:
            halves = [T.bind(half * self.v.all(scale)) for half in halves]
        return [T.bind(word) for word in split(halves[0], halves[1], self.parts)]

    def _run(self, head: Value, slot: Value, groups: Value) -> None:
        """Attend of the queries of some groups."""
        self.n, self.h, self.slot = head // self.shape.heads, head % self.shape.heads, slot
        self._allocate()
        self.unit.configure()
        with groups as group:
            self.first = group * self.group
            self.count = T.min(self.group, self.blocks - self.first)
            with T.serial(self.count) as block:
                self._load_queries(block)
            tiles(self.key_tiles, self.block_tiles, self._key_block)
            with T.serial(self.count) as block:
                self._store(block)
        self.unit.release()

    def _allocate(self) -> None:
        self.q_words = [scratch((self.group, self.sizes, 2, WORDS, WORDS)) for _ in range(self.parts)]
        self.p_words = [scratch((self.block_tiles, 2, WORDS, WORDS)) for _ in range(self.parts)]
        self.ot = local(self.group * self.rows, TILE)  # a scope for floats: memory is shared within one
        self.scores = local(self.block_tiles * BLOCK, TILE)
        self.top, self.total = local(self.group, TILE), local(self.group, TILE)
        self.now = local(3, TILE)  # of the block at hand: maximum, rescale factor, sum

    def _query(self, block: Value, lane: Value) -> Value:
        return (self.first + block) * TILE + lane

    def _load_queries(self, block: Value) -> None:
        """Turn the queries, scaled so that exp2 serves as exp; beyond the last one it is repeated."""
        s = self.shape
        scale = s.scale * math.log2(math.e)

        def turn(start: Value, count: int) -> None:
            with T.serial(2) as side:
                with T.serial(WORDS) as lane:
                    row = T.min(self._query(block, side * WORDS + lane), s.queries - 1)
                    words = self._split_row(self.q, [self.n, row, self.h, start], count, scale)
                    self._store_words(self.q_words, words, block, start // BLOCK, side, lane, 0)
                for part in self.q_words:
                    transpose(part, [block, start // BLOCK, side, 0, 0])

        tiles(s.size, BLOCK, turn)
        for c in COLUMNS:
            self.v.store(self.top, self.v.all(MASKED), block, c)
            self.v.store(self.total, self.v.all(0.0), block, c)
        with T.serial(self.rows) as row:
            for c in COLUMNS:
                self.v.store(self.ot, self.v.all(0.0), block * self.rows + row, c)

    def _key_block(self, start: Value, count: int) -> None:
        """Meet all query blocks with a block of keys."""
        self.start, self.tiles = start, count
        with T.serial(self.count) as block:
            with T.serial(count) as tile:
                self._scores(block, tile)
            self._maximum(block)
            self._rescale(block)
            with T.serial(count) as tile, T.serial(WORDS) as j:
                self._exponentials(tile, j)
            for c in COLUMNS:
                self.v.store(self.total, self.v.load(self.now, 2, c), block, c)
            tiles(self.rows, TILE, lambda row, rows: self._mix(block, row, rows // SIDE))

    def _scores(self, block: Value, tile: Value) -> None:
        """Compute S^T of 32 keys x 32 queries."""
        keys = Words(self.k_words, lambda step, _part: [self.slot, self.start + tile, step, 0])
        queries = Words(self.q_words, lambda step, _part: [block, step])
        self.unit.accumulate(Product(2, self.scores, tile * BLOCK, True, self.sizes, keys, queries))

    def _maximum(self, block: Value) -> None:
        """Mask the scores, and find the running maximum."""
        v = self.v
        for c in COLUMNS:
            v.store(self.now, v.load(self.top, block, c), 0, c)
        with T.serial(self.tiles * BLOCK // UNROLL) as some:
            for c in COLUMNS:
                scores = []
                for j in range(UNROLL):
                    key = some * UNROLL + j
                    score = v.load(self.scores, key, c)
                    masked = self._mask(score, self.start * BLOCK + key, self._query(block, c))
                    if masked is not score:
                        v.store(self.scores, masked, key, c)
                    scores.append(v.load(self.scores, key, c))
                while len(scores) > 1:
                    scores = [T.max(*pair) for pair in zip(scores[::2], scores[1::2], strict=True)]
                v.store(self.now, T.max(v.load(self.now, 0, c), scores[0]), 0, c)

    def _mask(self, score: Value, key: Value, query: Value) -> Value:
        """Hide keys that a query must not see, and further below, those beyond the last."""
        s, v = self.shape, self.v
        if s.offset is not None:
            last = T.ramp(query + s.offset, 1, v.lanes)
            score = T.Select(T.broadcast(key, v.lanes) <= last, score, v.all(MASKED))
        if s.keys % BLOCK:
            score = T.Select(T.broadcast(key < s.keys, v.lanes), score, v.all(2 * MASKED))
        return score

    def _rescale(self, block: Value) -> None:
        """Scale what earlier blocks gave, now that the maximum may have grown."""
        v = self.v
        grown = [v.load(self.top, block, c) - v.load(self.now, 0, c) for c in COLUMNS]
        for c, factor in zip(COLUMNS, self._exp2(grown), strict=True):
            v.store(self.now, factor, 1, c)
            v.store(self.top, v.load(self.now, 0, c), block, c)
            v.store(self.now, v.load(self.total, block, c) * factor, 2, c)
        with T.serial(self.rows) as row:
            for c in COLUMNS:
                value = v.load(self.ot, block * self.rows + row, c) * v.load(self.now, 1, c)
                v.store(self.ot, value, block * self.rows + row, c)

    def _exponentials(self, tile: Value, j: Value) -> None:
        """Sum the exponentials of the keys j and j + 16 of a tile, and make their words."""
        v = self.v
        places = [(tile * BLOCK + j + half, c) for c in COLUMNS for half in (0, WORDS)]
        powers = self._exp2([v.load(self.scores, row, c) - v.load(self.now, 0, c) for row, c in places])
        for side, c in enumerate(COLUMNS):
            first, second = powers[2 * side : 2 * side + 2]
            v.store(self.now, v.load(self.now, 2, c) + (first + second), 2, c)
            self._store_words(self.p_words, split(first, second, self.parts), tile, side, j, 0)

    def _exp2(self, values: Sequence[Value]) -> list[Value]:
        """Return 2^x by AVX-512's own steps: x less its floor, and a scaling by 2^floor."""

        def vector(name: str, *arguments: Value) -> Value:
            call = f"llvm.x86.avx512.mask.{name}.ps.512"
            return T.bind(T.call_llvm_pure_intrin(f"float32x{WORDS}", call, *arguments))

        everywhere, rounding = T.int16(-1), T.int32(4)
        values = [T.bind(value) for value in values]
        zero = self.v.all(0.0)
        parts = [vector("reduce", x, T.int32(FLOOR), zero, everywhere, rounding) for x in values]
        powers = [self.v.all(self.coefficients[-1])] * len(parts)
        for coefficient in self.coefficients[-2::-1]:
            powers = [T.bind(power * part + self.v.all(coefficient)) for power, part in zip(powers, parts, strict=True)]
        return [vector("scalef", power, x, zero, everywhere, rounding) for power, x in zip(powers, values, strict=True)]

    def _mix(self, block: Value, row: Value, rows: int) -> None:
        """Add the block's keys to rows of O^T."""
        values = Words(self.v_words, lambda tile, _part: [self.slot, self.start + tile, row])
        weights = Words(self.p_words, lambda tile, _part: [tile])
        self.unit.accumulate(Product(rows, self.ot, block * self.rows + row, False, self.tiles, values, weights))

    def _store(self, block: Value) -> None:
        """Divide by the sums and turn the result back."""
        s, v = self.shape, self.v
        for c in COLUMNS:
            v.store(self.total, v.all(1.0) / v.load(self.total, block, c), block, c)

        def turn(start: Value, count: int) -> None:
            first = block * self.rows + start
            with T.serial(2) as side:
                transpose(self.ot, [first, side * WORDS])
                with T.serial(WORDS) as lane:
                    row = self._query(block, side * WORDS + lane)
                    with T.If(row < s.queries):
                        with T.Then():
                            value = v.load(self.ot, first + lane, side * WORDS)
                            value = value * v.all(self.total[block, side * WORDS + lane])
                            store_row(self.out, T.bind(value), [self.n, row, self.h, start], count)

        tiles(s.value_size, WORDS, turn)


def tile_attention(shape: AttentionShape, machine: Machine, tiling: Tiling = Tiling()) -> tirx.PrimFunc:
    """Return attention over float32 [B, tokens, heads, size] as a function of query, key, value and output."""
    return prim_func(_TileAttention(shape, machine, tiling).body)
