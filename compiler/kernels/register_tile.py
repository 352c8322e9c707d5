"""The inner product that multiplies and convolutions share: a tile of rows x two vectors kept in registers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tvm.tirx.script.builder.ir as T

from compiler.kernels.epilogue import GEGLU, Epilogue
from compiler.kernels.tir import Value, Vectors

COLUMNS = 2  # vectors of a panel of packed weights
UNROLL = 4  # steps of the reduction written out


@dataclass(frozen=True)
class Machine:
    """What a kernel needs to know of the CPU, and how exactly it shall multiply.

    float32 lanes, vector registers, cores, bytes of second-level cache that a task may fill, the unit that multiplies
    bfloat16 ("amx" or "dot") if there is one that pays, into how many bfloat16 parts a float32 number is split for it
    (2 keep its accuracy, 1 does not), the m of Winograd's F(m x m) where --winograd-tile asks for one, and bytes of a
    core's part of the last cache level.
    """

    lanes: int
    registers: int
    cores: int
    cache: int = 1 << 20
    unit: str | None = None
    parts: int = 2
    winograd_tile: int | None = None
    shared: int = 8 << 20

    @property
    def dtype(self) -> str:
        """The type that kernels take and give."""
        return "float32"

    @property
    def rows(self) -> int:
        """Rows of a register tile; a quarter of the registers is left for operands."""
        return (self.registers - self.registers // 4) // COLUMNS

    @property
    def panel(self) -> int:
        """Output channels of a panel of packed weights."""
        return COLUMNS * self.lanes


class RegisterTile:
    """Accumulates ``rows`` x one panel of a result in ``accumulators``, whose row ``place`` leads to."""

    def __init__(
        self,
        machine: Machine,
        accumulators: Value,
        place: Callable[[int], Sequence[Value]] = lambda row: [row],
    ) -> None:
        self.v = Vectors(machine.lanes)
        self.columns = [column * machine.lanes for column in range(COLUMNS)]
        self.accumulators, self.place = accumulators, place

    def clear(self, rows: int) -> None:
        """Set the tile to zero."""
        for row in range(rows):
            for c in self.columns:
                self.v.store(self.accumulators, self.v.all(0.0), *self.place(row), c)

    def multiply(self, rows: int, factor: Callable[[int], Value], weights: Callable[[int], Value]) -> None:
        """Add ``factor(row)``, a scalar, times ``weights(column)``, a vector, for one step of the reduction."""
        for row in range(rows):
            for c in self.columns:
                product = self.v.all(factor(row)) * weights(c)
                at = [*self.place(row), c]
                self.v.store(self.accumulators, self.v.load(self.accumulators, *at) + product, *at)

    def write(self, rows: int, row_index: Callable[[int], Value], panel: Value, epilogue: Epilogue) -> None:
        """Finish the tile and store it as panel ``panel`` of the result.

        Channels beyond the last one are the panel's padding and are dropped. A gated panel holds a vector of values and
        one of gates, and gives one vector.
        """
        for row in range(rows):
            self.write_row(row, row_index(row), panel, epilogue)

    def write_row(self, row: Value, index: Value, panel: Value, epilogue: Epilogue) -> None:
        """Finish one row of the tile and store it as row ``index`` of the result."""
        width = self.columns[-1] + self.v.lanes
        values = [self.v.load(self.accumulators, row, c) for c in self.columns]
        if epilogue.activation == GEGLU:
            first = panel * self.v.lanes
            (value,) = epilogue.finish(self.v, values, index, [first, first + epilogue.channels // 2])
            epilogue.store(self.v, value, index, first)
        elif epilogue.channels % width == 0:
            channels = [panel * width + c for c in self.columns]
            for value, channel in zip(epilogue.finish(self.v, values, index, channels), channels, strict=True):
                epilogue.store(self.v, value, index, channel)
        else:
            self._write_tail(row, index, panel * width, epilogue)

    def _write_tail(self, row: Value, index: Value, first: Value, epilogue: Epilogue) -> None:
        scalar = Vectors(1)
        with T.serial(T.min(self.columns[-1] + self.v.lanes, epilogue.channels - first)) as c:
            (value,) = epilogue.finish(scalar, [self.accumulators[row, c]], index, [first + c])
            epilogue.store(scalar, value, index, first + c)
