"""What happens to a result while it is still in registers: bias, time embedding and residual added, then activated.

Every operand is a matrix [rows, channels] whose row serves ``total rows / rows`` rows of the result: one row is a
bias, a row per picture a time embedding, all rows a residual. The columns may go to several results, one share each.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm.tirx.script.builder.ir as T

from compiler.kernels.activation import ACTIVATIONS
from compiler.kernels.tir import Value, Vectors, argument

GEGLU = "geglu"  # Shazeer, GLU Variants Improve Transformer (2020): half of the channels times GELU of the other half


class Epilogue:
    """Operands added to a kernel's result of ``rows`` x ``channels``, the activation of the sum, and the results."""

    def __init__(
        self,
        operand_rows: Sequence[int],
        rows: int,
        channels: int,
        activation: str | None = None,
        results: int = 1,
        dtype: str = "float32",
    ) -> None:
        self.divisors = [rows // count for count in operand_rows]
        self.operand_rows, self.rows = operand_rows, rows
        self.channels = channels
        self.activation = activation
        self.width = (channels // 2 if activation == GEGLU else channels) // results
        self.results = results
        self.dtype = dtype

    def declare(self) -> None:
        """Declare the operands [operand rows, channels] and the results [rows, width], the kernel's last arguments."""
        rows = enumerate(self.operand_rows)
        self.buffers = [argument(f"add_{index}", (count, self.channels), self.dtype) for index, count in rows]
        self.outputs = [argument(f"y_{index}", (self.rows, self.width), self.dtype) for index in range(self.results)]

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

    def store(self, v: Vectors, value: Value, row: Value, channel: Value) -> None:
        """Store what ``finish`` made of the vector at (row, channel); it lies within one result."""
        if self.results == 1:
            v.store(self.outputs[0], value, row, channel)
            return
        for index, output in enumerate(self.outputs):
            with T.If(T.floordiv(channel, self.width) == index), T.Then():
                v.store(output, value, row, channel - index * self.width)
