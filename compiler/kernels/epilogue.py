"""What happens to a result while it is still in registers: bias, time embedding and residual added, then activated.

Every operand is a matrix [rows, channels] whose row serves ``total rows / rows`` rows of the result: one row is a
bias, a row per picture a time embedding, all rows a residual.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm.tirx.script.builder.ir as T

from compiler.kernels.activation import ACTIVATIONS
from compiler.kernels.tir import Value, Vectors, argument

GEGLU = "geglu"  # Shazeer, GLU Variants Improve Transformer (2020): half of the channels times GELU of the other half


class Epilogue:
    """Operands added to a kernel's result of ``rows`` x ``channels``, and the activation of the sum."""

    def __init__(self, operand_rows: Sequence[int], rows: int, channels: int, activation: str | None = None) -> None:
        self.divisors = [rows // count for count in operand_rows]
        self.operand_rows = operand_rows
        self.channels = channels
        self.activation = activation
        self.buffers: list[Value] = []

    def declare(self) -> None:
        """Declare the operands as the kernel's next arguments."""
        for index, count in enumerate(self.operand_rows):
            self.buffers.append(argument(f"add_{index}", (count, self.channels)))

    def finish(self, v: Vectors, values: Sequence[Value], row: Value, channels: Sequence[Value]) -> list[Value]:
        """Add the operands to the vectors at (row, each of ``channels``) and activate."""
        sums = []
        for value, channel in zip(values, channels, strict=True):
            for buffer, divisor in zip(self.buffers, self.divisors, strict=True):
                value = value + v.load(buffer, T.floordiv(row, divisor), channel)
            sums.append(T.bind(value))
        if self.activation == GEGLU:
            value, gate = sums
            return [value * ACTIVATIONS["gelu"](v, [gate])[0]]
        return sums if self.activation is None else ACTIVATIONS[self.activation](v, sums)
