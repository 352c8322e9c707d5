"""float32 as a sum of two bfloat16 numbers, in the pairs that dot-product instructions take.

x = high + low + rest, where |rest| is at most 2^-17 |x|. A product of two such numbers, without low times low, is right
to about 2^-16; sums are kept in float32. A word of 32 bits holds the numbers k and k + 16 of a block of 32, so that
packing needs no shuffle. Words pass for float32, since TVM may give the memory of one scratch buffer to another.
Source: Henry, Tang and Heinecke, Leveraging the bfloat16 Artificial Intelligence Datatype for Higher-Precision
Computations (2019).
"""

from __future__ import annotations

import tvm.tirx.script.builder.ir as T

from compiler.kernels.tir import Value

WORDS = 16  # words of a block, each of two numbers
WORD_BYTES = 4
BLOCK = 2 * WORDS  # numbers that one dot-product step takes
HALF = 0x8000  # half of a bfloat16's last place
UPPER = 0xFFFF0000
FIRST_OR_BOTH = 0xF8  # truth table of a | (b & c)


def _all(value: int) -> Value:
    return T.broadcast(T.uint32(value), WORDS)


def _rounded(value: Value) -> Value:
    """Round float32x16 to bfloat16, in the upper half of each word; the lower half is left over."""
    return T.bind(T.reinterpret(f"uint32x{WORDS}", value) + _all(HALF))


def _paired(first: Value, second: Value) -> Value:
    """Take the upper halves of both. LLVM would make a shuffle of it, which takes four times as long."""
    halves = [T.shift_right(first, _all(16)), second, _all(UPPER)]
    words = T.call_llvm_pure_intrin(
        f"uint32x{WORDS}", "llvm.x86.avx512.pternlog.d.512", *halves, T.int32(FIRST_OR_BOTH)
    )
    return T.reinterpret(f"float32x{WORDS}", words)


def split(first: Value, second: Value, parts: int) -> list[Value]:
    """Pair two vectors of 16 float32 numbers; returns the word vectors of their high and, of 2 ``parts``, low ones."""
    high = [_rounded(value) for value in (first, second)]
    words = [_paired(*high)]
    if parts > 1:
        rest = [
            T.bind(value - T.reinterpret(f"float32x{WORDS}", T.bitwise_and(rounded, _all(UPPER))))
            for value, rounded in zip((first, second), high, strict=True)
        ]
        words.append(_paired(*(_rounded(value) for value in rest)))
    return words
