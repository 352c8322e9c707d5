"""Blocks of 16 x 16 numbers turned by shuffles of vectors, and rows whose length is no multiple of a vector."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import tvm.tirx.script.builder.ir as T

from compiler.kernels.tir import Value, Vectors

LANES = 16


def transpose(buffer: Value, index: Sequence[Value]) -> None:
    """Transpose 16 x 16 numbers in place; ``index`` leads to the first. A round exchanges blocks of 1, 2, 4 or 8."""
    *outer, first, column = index
    v = Vectors(LANES)
    for size in (1, 2, 4, 8):
        low = [lane if not lane & size else LANES + lane - size for lane in range(LANES)]
        high = [lane + size if not lane & size else LANES + lane for lane in range(LANES)]
        with T.unroll(LANES // 2) as pair:
            row = first + pair // size * (2 * size) + pair % size
            rows = [T.bind(v.load(buffer, *outer, row + offset, column)) for offset in (0, size)]
            for offset, order in ((0, low), (size, high)):
                v.store(buffer, T.Shuffle(rows, order), *outer, row + offset, column)


def _pieces(count: int) -> Iterator[tuple[int, int]]:
    """Yield start and length of parts whose lengths are powers of two."""
    start, length = 0, LANES
    while start < count:
        if length <= count - start:
            yield start, length
            start += length
        length //= 2


def load_row(buffer: Value, index: Sequence[Value], count: int) -> Value:
    """Load a vector of 16 from ``index`` on, with zeros after ``count`` numbers; nothing beyond is read."""
    *outer, first = index
    parts = [Vectors(length).load(buffer, *outer, first + start) for start, length in _pieces(count)]
    if count == LANES:
        return T.bind(parts[0])
    if count % 2:  # a shuffle takes no scalars; this one is the last part
        parts[-1] = T.broadcast(parts[-1], 2)
    order = [*range(count), *[count + count % 2] * (LANES - count)]
    return T.bind(T.Shuffle([*parts, T.broadcast(T.float32(0.0), LANES)], order))


def store_row(buffer: Value, value: Value, index: Sequence[Value], count: int) -> None:
    """Store the first ``count`` numbers of a vector of 16 from ``index`` on."""
    *outer, first = index
    for start, length in _pieces(count):
        lanes = list(range(start, start + length))
        part = value if length == LANES else T.Shuffle([value], lanes)
        Vectors(length).store(buffer, part, *outer, first + start)
