"""The vocabulary of the kernels: TensorIR through the builder, with explicit vectors of the target's width.

Tiles and unrolled steps are Python loops; only loops that remain loops are ``T.serial`` or ``T.parallel``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm.tirx.script.builder.ir as T
from tvm import tirx
from tvm.script.ir_builder import IRBuilder

OPAQUE = 8  # FuseOps must leave a kernel as it is
Value = Any  # an expression of the builder
ROUND = 12582912.0  # 1.5 * 2^23: adding it rounds a float32 to an integer kept in its low bits
EXPONENT_BITS = 23
LOWEST_EXPONENT = -126.0
LINE = 16  # floats of a cache line
HIDING = 5  # rows of two vectors whose sums hide the latency of a multiply-add
EXP2_DEGREE = 6  # 2^f on |f| <= 1/2 to 1.2e-8 relative, below float32's own rounding


def prim_func(body: Callable[[], None]) -> tirx.PrimFunc:
    """Build a function from ``body``, which declares its arguments and writes its statements."""
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("main")
            T.func_attr({"tirx.noalias": True, "op_pattern": OPAQUE})
            body()
    return builder.get()


def argument(name: str, shape: Sequence[int], dtype: str = "float32") -> Value:
    """Declare the next argument; the last one declared is the output."""
    return T.arg(name, T.buffer(tuple(shape), dtype))


def local(*shape: int) -> Value:
    """Allocate a float32 tile that LLVM can keep in registers or the first cache level.

    Each one costs a workspace call per parallel task, so kernels use few.
    """
    return T.alloc_buffer(shape, "float32", scope="local", layout=None)


def scratch(shape: Sequence[int]) -> Value:
    """Allocate float32 memory of a parallel task, too large for the stack; its contents are undefined."""
    return T.alloc_buffer(tuple(shape), "float32", scope="global", layout=None)


def pointer(buffer: Value, index: Sequence[Value]) -> Value:
    """Return the address of an element, for instructions that read or write memory around it.

    Unlike the address of a load, it tells TVM that all of the buffer is in use, which then keeps its shape.
    """
    offset: Value = 0
    for position, extent in zip(index, buffer.shape, strict=True):
        offset = offset * extent + position
    return buffer.access_ptr("rw", offset=offset)


def prefetch(buffer: Value, index: Sequence[Value]) -> None:
    """Ask for the cache line of an element, into the second level.

    LLVM takes it for a use of memory: within a loop it would keep sums out of registers.
    """
    read, second_level, data = T.int32(0), T.int32(2), T.int32(1)
    T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", pointer(buffer, index), read, second_level, data))


class Vectors:
    """Loads, stores and arithmetic on vectors of ``lanes`` float32; one lane is a scalar."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes

    def _index(self, index: Sequence[Value]) -> list[Value]:
        last = index[-1] if self.lanes == 1 else T.ramp(index[-1], 1, self.lanes)
        return [*index[:-1], last]

    def _fill(self, scalar: Value) -> Value:
        return scalar if self.lanes == 1 else T.broadcast(scalar, self.lanes)

    def _type(self, base: str) -> str:
        return base if self.lanes == 1 else f"{base}x{self.lanes}"

    def load(self, buffer: Value, *index: Value) -> Value:
        """Load a vector; the last index is its first lane."""
        return buffer[tuple(self._index(index))]

    def store(self, buffer: Value, value: Value, *index: Value) -> None:
        """Store a vector; the last index is its first lane."""
        T.buffer_store(buffer, value, self._index(index))

    def all(self, value: Value) -> Value:
        """Fill all lanes with one scalar."""
        return self._fill(T.float32(value) if isinstance(value, (int, float)) else value)

    def exp2(self, values: Sequence[Value]) -> list[Value]:
        """Return 2^x for vectors x <= 0, by a polynomial and an addition to the exponent's bits.

        LLVM vectorises neither exp nor exp2. The vectors go in lockstep, which hides the length of the chain.
        """
        integers, floats = self._type("int32"), self._type("float32")
        coefficients = _exp2_coefficients()

        def each(step: Callable[..., Value], *columns: Sequence[Value]) -> list[Value]:
            return [T.bind(step(*row)) for row in zip(*columns, strict=True)]

        clipped = each(lambda x: T.max(x, self.all(LOWEST_EXPONENT)), values)
        # reinterpret keeps the simplifier from folding x + c - c
        bits = each(lambda x: T.reinterpret(integers, x + self.all(ROUND)), clipped)
        parts = each(lambda x, b: x - (T.reinterpret(floats, b) - self.all(ROUND)), clipped, bits)
        powers = [self.all(coefficients[-1])] * len(parts)
        for coefficient in coefficients[-2::-1]:
            powers = each(lambda p, f, c=coefficient: p * f + self.all(c), powers, parts)
        shift = self._fill(T.int32(EXPONENT_BITS))
        return each(
            lambda p, b: T.reinterpret(floats, T.reinterpret(integers, p) + T.shift_left(b, shift)), powers, bits
        )


def _exp2_coefficients() -> list[float]:
    """Return the power series of 2^f through Chebyshev points of |f| <= 1/2, lowest power first."""
    fit = np.polynomial.Chebyshev.interpolate(np.exp2, EXP2_DEGREE, domain=[-0.5, 0.5])
    return [float(c) for c in fit.convert(kind=np.polynomial.Polynomial).coef]


def steps(count: int, unroll: int, body: Callable[[Value], None]) -> None:
    """Run ``body(i)`` for i < count, ``unroll`` at a time, the rest after."""
    if count >= unroll:
        with T.serial(count // unroll) as outer:
            for inner in range(unroll):
                body(outer * unroll + inner)
    for rest in range(count - count % unroll, count):
        body(rest)


def tiles(count: int, size: int, body: Callable[[Value, int], None]) -> None:
    """Run ``body(start, length)`` over ``count`` in tiles of ``size``; the last may be shorter."""
    if count >= size:
        with T.serial(count // size) as tile:
            body(tile * size, size)
    if count % size:
        body(count - count % size, count % size)


def tile_size(count: int, limit: int) -> int:
    """Return a tile for ``count`` of at most ``limit``: one that divides it if that costs at most a third of the tile.

    Without a shorter last tile the kernel's code is half as long. But a tile of less than ``HIDING`` rows waits for its
    own sums. Otherwise the tiles are as even as possible.
    """
    if count <= limit:
        return count
    divisor = max(d for d in range(1, limit + 1) if count % d == 0)
    return divisor if 3 * divisor >= 2 * limit and divisor >= HIDING else -(-count // -(-count // limit))
