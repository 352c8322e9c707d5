"""float32 as a sum of two bfloat16 numbers, in the pairs that dot-product instructions take.

x = high + low + rest, where |rest| is at most 2^-17 |x|. A product of two such numbers, without low times low, is right
to about 2^-16; sums are kept in float32. A word of 32 bits holds the numbers k and k + 16 of a block of 32, so that
packing needs no shuffle. Source: Henry, Tang and Heinecke, Leveraging the bfloat16 Artificial Intelligence Datatype
for Higher-Precision Computations (2019).
"""

from __future__ import annotations

import tvm.tirx.script.builder.ir as T

from compiler.kernels.tir import Value

WORDS = 16  # words of a block, each of two numbers
BLOCK = 2 * WORDS  # numbers that one dot-product step takes
HALF = 0x8000  # half of a bfloat16's last place
UPPER = 0xFFFF0000


def _all(value: int) -> Value:
    return T.broadcast(T.uint32(value), WORDS)


def _rounded(value: Value) -> Value:
    """Round float32x16 to bfloat16, in the upper half of each word."""
    return T.bind(T.bitwise_and(T.reinterpret(f"uint32x{WORDS}", value) + _all(HALF), _all(UPPER)))


def _paired(first: Value, second: Value) -> Value:
    return T.bitwise_or(T.shift_right(first, _all(16)), second)


def split(first: Value, second: Value, parts: int) -> list[Value]:
    """Pair two vectors of 16 float32 numbers; returns the word vectors of their high and, of 2 ``parts``, low ones."""
    high = [_rounded(value) for value in (first, second)]
    words = [_paired(*high)]
    if parts > 1:
        rest = [
            T.bind(value - T.reinterpret(f"float32x{WORDS}", rounded))
            for value, rounded in zip((first, second), high, strict=True)
        ]
        words.append(_paired(*(_rounded(value) for value in rest)))
    return words
