"""Products of words by AVX-512's dot product of bfloat16 pairs (vdpbf16ps), on CPUs without tile registers.

Source: Intel, Architecture Instruction Set Extensions Programming Reference, chapter 2 (AVX512_BF16).
"""

from __future__ import annotations

import tvm.tirx.script.builder.ir as T

from compiler.kernels.tir import Vectors, local
from compiler.kernels.unit import SIDE, TILE, Product, Unit, either

ROWS = 11  # of two vectors each: with two vectors of weights they leave registers free
SIDES = TILE // SIDE
NAME = "tvmerge_dot"
# TVM stores bfloat16 as integers, which LLVM's intrinsic refuses; so it is called by a function in LLVM's language.
FUNCTION = f"""
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
define <16 x float> @{NAME}(<16 x float> %sum, <16 x float> %left, <16 x float> %right) {{
  %a = bitcast <16 x float> %left to <32 x bfloat>
  %b = bitcast <16 x float> %right to <32 x bfloat>
  %r = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %sum, <32 x bfloat> %a, <32 x bfloat> %b)
  ret <16 x float> %r
}}
"""


class Dot(Unit):
    """Keeps 11 rows of a result in vector registers. Takes operands of one part."""

    def __init__(self) -> None:
        self.v = Vectors(SIDE)

    def configure(self) -> None:
        """Make room for the rows at hand, which LLVM keeps in registers."""
        self.now = local(ROWS, TILE)

    def release(self) -> None:
        """Leave nothing behind: vector registers belong to nobody."""

    def accumulate(self, product: Product) -> None:
        """See ``Unit``."""
        with T.attr(0, "pragma_import_llvm", FUNCTION):
            for start in range(0, product.rows * SIDE, ROWS):
                some = range(start, min(start + ROWS, product.rows * SIDE))
                self._some(some, product)

    def _some(self, rows: range, product: Product) -> None:
        sums, first, left, right = product.sums, product.first, product.left, product.right
        one, v, places = Vectors(1), self.v, [(row, side) for row in rows for side in range(SIDES)]

        def now(row: int, side: int) -> tuple[int, int]:
            return row - rows.start, side * SIDE

        def clear() -> None:
            for place in places:
                v.store(self.now, v.all(0.0), *now(*place))

        def load() -> None:
            for row, side in places:
                v.store(self.now, v.load(sums, first + row, side * SIDE), *now(row, side))

        either(product.fresh, clear, load)
        with T.serial(product.count) as step, T.serial(SIDE) as pair:
            *outer, row = left.at(step, 0)
            block = right.at(step, 0)
            columns = [T.bind(v.load(right.parts[0], *block, side, pair, 0)) for side in range(SIDES)]
            for line in rows:
                word = T.bind(v.all(one.load(left.parts[0], *outer, row + line * product.stride, pair)))
                for side in range(SIDES):
                    total = v.load(self.now, *now(line, side))
                    v.store(self.now, T.call_extern("float32x16", NAME, total, word, columns[side]), *now(line, side))
        for row, side in places:
            v.store(sums, v.load(self.now, *now(row, side)), first + row, side * SIDE)
