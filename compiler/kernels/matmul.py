"""Y[M, N] = X[M, K] W[K, N] + epilogue, float32, weights packed in panels [N / panel][K][panel].

A tile of 12 rows x 32 columns (AVX-512) stays in registers: per step of K two vector loads of weights feed 24
multiply-adds. With many rows a task is a stripe of rows, and as many panels as fit the second cache level are reused
for all rows of the stripe. With few rows the tasks are the panels, so that each weight is read once; the next panel is
asked for while this one is computed, or memory and arithmetic would wait for each other.
Source: Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication (2008).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tvm.tirx.script.builder.ir as T
from tvm import tirx

from compiler.kernels.epilogue import Epilogue
from compiler.kernels.register_tile import UNROLL, Machine, RegisterTile
from compiler.kernels.sources import Sources
from compiler.kernels.tiling import choice
from compiler.kernels.tir import LINE, Value, argument, local, prefetch, prim_func, steps, tile_size

FEW_ROWS = 512  # up to which weights weigh more than rows
STRIPES = 2  # stripes of rows per core
BURST = 20  # cache lines asked for at once


@dataclass(frozen=True)
class Tiling:
    """Rows of a register tile at most, whether a task is a panel (1) or a stripe of rows (2), and stripes per core."""

    rows: int = choice(0, 6, 8, 10, 14)
    task: int = choice(0, 1, 2)
    stripes: int = choice(STRIPES, 1, 4, 8)


class _Matmul:
    def __init__(
        self,
        m: int,
        k: int,
        n: int,
        operand_rows: Sequence[int],
        machine: Machine,
        activation: str | None,
        results: int,
        widths: Sequence[int],
        tiling: Tiling,
    ) -> None:
        self.tiling = tiling
        self.m, self.k, self.n, self.machine = m, k, n, machine
        self.sources = Sources(widths or [k])
        self.panels = -(-n // machine.panel)
        self.tile_rows = tile_size(m, tiling.rows or machine.rows)
        self.tiles = -(-m // self.tile_rows)
        self.bursts = 1
        self.lines = -(-machine.panel // LINE)  # of a row of a panel
        self.epilogue = Epilogue(operand_rows, m, n, activation, results)

    def body(self) -> None:
        """Declare the arguments and share the tiles among the cores."""
        self.sources.declare((self.m,))
        self.w = argument("w", (self.panels, self.k, self.machine.panel))
        self.epilogue.declare()
        by_panel = self.m <= FEW_ROWS and self.panels >= self.machine.cores
        if by_panel if self.tiling.task == 0 else self.tiling.task == 1:
            self.bursts = self._count_bursts()
            with T.parallel(self.panels) as panel:
                with T.serial(self.tiles) as tile:
                    self._tile(tile, panel)
            return
        stripes = min(self.tiles, self.tiling.stripes * self.machine.cores)
        stripe_tiles = -(-self.tiles // stripes)
        kept = max(1, min(self.panels, self.machine.cache // 2 // (self.k * self.machine.panel * 4)))
        with T.parallel(stripes) as stripe:
            with T.serial(-(-self.panels // kept)) as group:
                low = stripe * stripe_tiles
                with T.serial(low, T.min(self.tiles, low + stripe_tiles)) as tile:
                    with T.serial(group * kept, T.min(self.panels, group * kept + kept)) as panel:
                        self._tile(tile, panel)

    def _tile(self, tile: Value, panel: Value) -> None:
        accumulators = local(self.tile_rows, self.machine.panel)
        rest = self.m - (self.tiles - 1) * self.tile_rows
        if rest == self.tile_rows:
            self._rows(accumulators, tile, panel, rest)
            return
        with T.If(tile < self.tiles - 1):
            with T.Then():
                self._rows(accumulators, tile, panel, self.tile_rows)
            with T.Else():
                self._rows(accumulators, tile, panel, rest)

    def _rows(self, accumulators: Value, tile: Value, panel: Value, rows: int) -> None:
        registers = RegisterTile(self.machine, accumulators)
        first = tile * self.tile_rows
        registers.clear(rows)
        for source, start, end in self.sources.spans():

            def step(k: Value, x: Value = source, start: int = start) -> None:
                registers.multiply(
                    rows, lambda row: x[first + row, k], lambda c: registers.v.load(self.w, panel, start + k, c)
                )

            length = (end - start) // self.bursts
            if self.bursts == 1:
                steps(length, UNROLL, step)
                continue
            with T.serial(self.bursts) as burst:
                self._prefetch(tile * self.bursts + burst, panel)
                low = burst * length

                def later(k: Value, step: Callable[[Value], None] = step, low: Value = low) -> None:
                    step(low + k)

                steps(length, UNROLL, later)
        registers.write(rows, lambda row: first + row, panel, self.epilogue)

    def _count_bursts(self) -> int:
        """Return in how many bursts a tile asks for its share of the next panel's weights."""
        units = self.k // UNROLL
        if len(self.sources.widths) > 1 or self.k % UNROLL:
            return 1
        wanted = -(-self.k * self.lines // (self.tiles * BURST))
        return min(
            (count for count in range(1, units + 1) if units % count == 0), key=lambda count: (count < wanted, count)
        )

    def _prefetch(self, turn: Value, panel: Value) -> None:
        """Ask for some of the next panel's weights, while the tiles of this one are computed."""
        lines, turns = self.k * self.lines, self.tiles * self.bursts
        each, after = -(-lines // turns), T.min(panel + 1, self.panels - 1)
        with T.serial(each) as index:
            line = T.min(turn * each + index, lines - 1)
            column = T.floormod(line, self.lines) * LINE
            prefetch(self.w, [after, T.floordiv(line, self.lines), column])


def matmul(
    m: int,
    k: int,
    n: int,
    operand_rows: Sequence[int],
    machine: Machine,
    activation: str | None = None,
    results: int = 1,
    widths: Sequence[int] = (),
    tiling: Tiling = Tiling(),
) -> tirx.PrimFunc:
    """Return X[m, k] W[k, n] + epilogue as a function of x, packed w, the epilogue's operands and its results.

    With the activation "geglu" the first n / 2 columns are values and the others gates; a panel packs a vector of each,
    and the result is [m, n / 2]. Several results [m, n / results] share the columns evenly, in whole panels.
    With ``widths`` x is several arguments [m, widths[i]] side by side.
    """
    return prim_func(_Matmul(m, k, n, operand_rows, machine, activation, results, widths, tiling).body)
