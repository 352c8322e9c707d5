"""What is added to a result while it is still in registers: bias, time embedding, residual.

Every operand is a matrix [rows, channels] whose row serves ``total rows / rows`` rows of the result: one row is a
bias, a row per picture a time embedding, all rows a residual.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm.tirx.script.builder.ir as T

from compiler.kernels.tir import Value, Vectors, argument


class Epilogue:
    """The operands of a kernel that are added to its result of ``rows`` x ``channels``."""

    def __init__(self, operand_rows: Sequence[int], rows: int, channels: int) -> None:
        self.divisors = [rows // count for count in operand_rows]
        self.operand_rows = operand_rows
        self.channels = channels
        self.buffers: list[Value] = []

    def declare(self) -> None:
        """Declare the operands as the kernel's next arguments."""
        for index, count in enumerate(self.operand_rows):
            self.buffers.append(argument(f"add_{index}", (count, self.channels)))

    def add(self, v: Vectors, value: Value, row: Value, channel: Value) -> Value:
        """Add the operands' vectors at (row, channel)."""
        for buffer, divisor in zip(self.buffers, self.divisors, strict=True):
            value = value + v.load(buffer, T.floordiv(row, divisor), channel)
        return value

    def add_scalar(self, value: Value, row: Value, channel: Value) -> Value:
        """Add the operands' elements at (row, channel)."""
        for buffer, divisor in zip(self.buffers, self.divisors, strict=True):
            value = value + buffer[T.floordiv(row, divisor), channel]
        return value
