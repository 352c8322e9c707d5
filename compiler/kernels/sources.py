"""The input of a kernel, whose channels may be those of several arguments: a concatenation read without a copy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import tvm.tirx.script.builder.ir as T

from compiler.kernels.tir import Value, argument


class Sources:
    """Arguments [..., widths[i]] that are read as one array [..., sum of widths]."""

    def __init__(self, widths: Sequence[int], dtype: str = "float32") -> None:
        self.widths, self.dtype = tuple(widths), dtype

    def declare(self, leading: Sequence[int]) -> None:
        """Declare the arguments, the kernel's next ones; ``leading`` are their other extents."""
        self.buffers = [
            argument(f"x_{index}", (*leading, width), self.dtype) for index, width in enumerate(self.widths)
        ]

    def spans(self) -> list[tuple[Value, int, int]]:
        """Return each argument with its first channel of the whole and the one after its last."""
        edges = pairwise([0, *accumulate(self.widths)])
        return [(buffer, first, end) for buffer, (first, end) in zip(self.buffers, edges, strict=True)]

    def at(self, *index: Value) -> Value:
        """Load one number; the last index is its channel of the whole."""
        *leading, channel = index

        def load(buffer: Value, first: int) -> Value:
            return buffer[tuple([*leading, channel - first])]

        *others, (last, start, _) = self.spans()
        value = load(last, start)
        for buffer, first, end in reversed(others):
            value = T.if_then_else(channel < end, load(buffer, first), value)
        return value
