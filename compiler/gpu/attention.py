"""Attention on tensor cores without a stored score matrix, in 16 bits, sums in float32.

A block takes 64 queries of a head, a warp 16 of them; keys and values stream through shared memory. The scores' sums
are, as they lie in registers, the left fragments of the second product. Source: Dao, FlashAttention-2 (2023).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import tvm.tirx.script.builder.ir as T
from tvm import tirx

from compiler.gpu.machine import Gpu
from compiler.gpu.threads import (
    CHUNK,
    EDGE,
    LEFT,
    NARROW,
    QUAD,
    RIGHT,
    SUMS,
    WARP,
    at,
    call,
    fill,
    grid,
    join_lanes,
    registers,
    shared,
    store_pair,
    synchronise,
    unrolled,
)
from compiler.kernels.flash_attention import AttentionShape
from compiler.kernels.tir import Value, argument, prim_func

WARPS = 4
QUERIES = WARPS * EDGE
AT_ONCE = 2  # blocks of a multiprocessor, at the least
LARGEST = 192  # numbers of a head that registers hold
MASKED = -1e30  # finite: a row that is masked everywhere gives a number
PADDING = CHUNK  # numbers between rows, so that eight rows lie in different banks


def accepts(shape: AttentionShape) -> bool:
    """Tell whether a head's numbers come in chunks and fit the registers."""
    return shape.size % CHUNK == 0 and shape.size <= LARGEST and shape.value_size == shape.size


class _Attention:
    def __init__(self, shape: AttentionShape, gpu: Gpu) -> None:
        self.shape, self.dtype = shape, gpu.dtype
        self.size = -(-shape.size // EDGE) * EDGE
        self.keys = 64 if shape.size <= 96 else 32
        row = 2 * (self.size + PADDING)
        fits = row * (QUERIES + 4 * self.keys) <= gpu.shared
        self.stages = 2 if fits else 1
        self.blocks = -(-shape.keys // self.keys)

    def body(self) -> None:
        """Declare the arguments and run a block for each 64 queries of a head."""
        s = self.shape
        query, key, value = (
            argument(name, (s.batch, tokens, s.heads, s.size), self.dtype)
            for name, tokens in (("q", s.queries), ("k", s.keys), ("v", s.keys))
        )
        self.y = argument("y", (s.batch, s.queries, s.heads, s.size), self.dtype)
        blocks = (-(-s.queries // QUERIES), s.heads, s.batch)
        with grid(WARP * WARPS, *blocks, at_once=AT_ONCE) as (thread, block, head, n):
            self.thread, self.head, self.n = thread, head, n
            self.lane, self.warp = T.bind(T.floormod(thread, WARP)), T.bind(T.floordiv(thread, WARP))
            self.first = T.bind(block * QUERIES)
            self._allocate()
            self._copy(self.q, 0, query, self.first, QUERIES, s.queries)
            self._fetch(key, value, 0)
            self._start()
            with T.serial(self.blocks) as step:
                self._block(key, value, step)
            self._finish()

    def _allocate(self) -> None:
        width = self.size + PADDING
        self.q = shared((1, QUERIES, width))
        self.k, self.v = (shared((self.stages, self.keys, width)) for _ in range(2))
        self.left = registers(self.size // EDGE * LEFT, "uint32")
        self.weights = registers(LEFT, "uint32")
        self.right = registers(2 * RIGHT, "uint32")
        self.scores = registers(self.keys // NARROW * SUMS)
        self.sums = registers(self.size // NARROW * SUMS)
        self.state = registers(6)  # of two rows: the largest score, the sum of weights, what that shrinks by

    def _copy(self, to: Value, stage: Value, source: Value, first: Value, rows: int, count: int) -> None:
        """Start to copy ``rows`` rows from ``first`` on; zeros beyond the tokens and the head's numbers."""
        s = self.shape
        chunks = self.size // CHUNK
        threads = WARP * WARPS
        for piece in range(-(-rows * chunks // threads)):
            index = self.thread + piece * threads
            row, chunk = T.floordiv(index, chunks), T.floormod(index, chunks)
            token = T.bind(first + row)
            inside = tirx.all(token < count, chunk < s.size // CHUNK)
            place = ((self.n * count + token) * s.heads + self.head) * s.size + chunk * CHUNK
            target = (stage * rows + row) * (self.size + PADDING) + chunk * CHUNK

            def copy(target: Value = target, place: Value = place, inside: Value = inside) -> None:
                call("tvmerge_copy", at(to, target), at(source, T.Select(inside, place, 0)), inside.astype("int32"))

            if (piece + 1) * threads <= rows * chunks:
                copy()
            else:
                with T.If(index < rows * chunks), T.Then():
                    copy()

    def _fetch(self, key: Value, value: Value, step: Value) -> None:
        stage = T.floormod(step, self.stages)
        for memory, source in ((self.k, key), (self.v, value)):
            self._copy(memory, stage, source, step * self.keys, self.keys, self.shape.keys)
        call("tvmerge_commit")

    def _place(self, stage: Value, rows: int, row: Value, chunk: Value) -> Value:
        return (stage * rows + row) * (self.size + PADDING) + chunk * CHUNK

    def _start(self) -> None:
        call("tvmerge_wait<0>")
        synchronise()
        with unrolled(self.size // EDGE) as i:
            row = self.warp * EDGE + T.floormod(self.lane, EDGE)
            place = self._place(0, QUERIES, row, 2 * i + T.floordiv(self.lane, EDGE))
            call("tvmerge_load", at(self.left, i * LEFT), at(self.q, place))
        fill(self.sums, 0.0)
        fill(self.state, 0.0)
        for row in range(2):
            T.buffer_store(self.state, T.float32(MASKED), [row])

    def _block(self, key: Value, value: Value, step: Value) -> None:
        stage = T.bind(T.floormod(step, self.stages))
        more = step + 1 < self.blocks
        if self.stages == 2:
            call("tvmerge_wait<0>")
            synchronise()
            with T.If(more), T.Then():
                self._fetch(key, value, step + 1)
        self._score(stage)
        self._mask(step * self.keys)
        for row in range(2):
            self._weigh(row)
        self._mix(stage)
        if self.stages == 1:
            synchronise()
            with T.If(more), T.Then():
                self._fetch(key, value, step + 1)
            call("tvmerge_wait<0>")
            synchronise()

    def _score(self, stage: Value) -> None:
        """Multiply queries and keys."""
        fill(self.scores, 0.0)
        with unrolled(self.size // EDGE) as i, unrolled(self.keys // EDGE) as j:
            row = j * EDGE + T.floormod(self.lane, 8) + T.floordiv(self.lane, EDGE) * 8
            chunk = 2 * i + T.floormod(T.floordiv(self.lane, 8), 2)
            call("tvmerge_load", at(self.right, 0), at(self.k, self._place(stage, self.keys, row, chunk)))
            for half in range(2):
                sums = at(self.scores, (2 * j + half) * SUMS)
                self._multiply(sums, at(self.left, i * LEFT), at(self.right, half * RIGHT))

    def _multiply(self, sums: Value, left: Value, right: Value) -> None:
        call(f"tvmerge_multiply_{self.dtype}", sums, left, right)

    def _mask(self, first: Value) -> None:
        """Take out keys beyond the last one, and those after the query where attention is causal."""
        s = self.shape
        if s.keys % self.keys == 0 and s.offset is None:
            return
        with unrolled(self.keys // NARROW * SUMS) as i:
            column = first + T.floordiv(i, SUMS) * NARROW + T.floormod(self.lane, QUAD) * 2 + T.floormod(i, 2)
            seen = column < s.keys
            if s.offset is not None:
                half = T.floordiv(T.floormod(i, SUMS), 2)
                row = self.first + self.warp * EDGE + T.floordiv(self.lane, QUAD) + half * 8
                seen = tirx.all(seen, column <= row + s.offset)
            T.buffer_store(self.scores, T.Select(seen, self.scores[i], T.float32(MASKED)), [i])

    def _weigh(self, row: int) -> None:
        """Turn the scores of a row into weights relative to its largest score so far, and scale what was summed."""
        state, scores, largest, total, shrink = self.state, self.scores, row, 2 + row, 4 + row
        scale = T.float32(self.shape.scale * math.log2(math.e))

        def each(register: Value, use: Callable[[Value], tuple[Value, Value, Value]]) -> None:
            """Store ``use(index)``: where, what and at which index, for those of a register that are the row's."""
            with unrolled(int(register.shape[0]) // 2) as i:
                target, value, index = use(T.floordiv(i, 2) * SUMS + 2 * row + T.floormod(i, 2))
                T.buffer_store(target, value, [index])

        T.buffer_store(state, state[largest], [shrink])
        each(scores, lambda i: (state, T.max(state[largest], scores[i]), largest))
        join_lanes(state, largest, T.max, QUAD)
        T.buffer_store(state, T.exp2((state[shrink] - state[largest]) * scale), [shrink])
        T.buffer_store(state, state[total] * state[shrink], [total])
        each(scores, lambda i: (scores, T.exp2((scores[i] - state[largest]) * scale), i))
        each(scores, lambda i: (state, state[total] + scores[i], total))
        each(self.sums, lambda i: (self.sums, self.sums[i] * state[shrink], i))

    def _mix(self, stage: Value) -> None:
        """Multiply weights and values."""
        with unrolled(self.keys // EDGE) as i:
            for part in range(LEFT):
                first = (2 * i + part // 2) * SUMS + part % 2 * 2
                pair = T.call_extern("uint32", f"tvmerge_pair_{self.dtype}", self.scores[first], self.scores[first + 1])
                T.buffer_store(self.weights, pair, [part])
            with unrolled(self.size // EDGE) as j:
                row = i * EDGE + T.floormod(self.lane, EDGE)
                place = self._place(stage, self.keys, row, 2 * j + T.floordiv(self.lane, EDGE))
                call("tvmerge_load_transposed", at(self.right, 0), at(self.v, place))
                for half in range(2):
                    sums = at(self.sums, (2 * j + half) * SUMS)
                    self._multiply(sums, at(self.weights, 0), at(self.right, half * RIGHT))

    def _finish(self) -> None:
        s = self.shape
        for row in range(2):
            join_lanes(self.state, 2 + row, lambda a, b: a + b, QUAD)
            token = T.bind(self.first + self.warp * EDGE + T.floordiv(self.lane, QUAD) + row * 8)
            with T.If(token < s.queries), T.Then():
                place = T.bind(((self.n * s.queries + token) * s.heads + self.head) * s.size)
                with unrolled(s.size // NARROW) as j:
                    low, high = (self.sums[j * SUMS + row * 2 + i] / self.state[2 + row] for i in range(2))
                    store_pair(self.y, place + j * NARROW + T.floormod(self.lane, QUAD) * 2, low, high)


def attention(shape: AttentionShape, gpu: Gpu) -> tirx.PrimFunc:
    """Return attention as a function of q [N, queries, heads, size], k and v [N, keys, heads, size] and y as q."""
    return prim_func(_Attention(shape, gpu).body)
