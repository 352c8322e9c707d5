"""A tile of a product on tensor cores: operands stream through shared memory while the sums stay in registers.

Copies run ``stages`` steps ahead of the multiplies. Chunks of a row are shuffled so that the eight rows which one
load reads lie in different banks. Source: NVIDIA, CUTLASS, Efficient GEMM in CUDA (2.x).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import tvm.tirx.script.builder.ir as T

from compiler.gpu.threads import (
    CHUNK,
    EDGE,
    LEFT,
    NARROW,
    RIGHT,
    SUMS,
    WARP,
    at,
    call,
    fill,
    registers,
    shared,
    synchronise,
    unrolled,
)
from compiler.kernels.tir import Value

DEPTH = 32  # numbers of the reduction in a step
CHUNKS = DEPTH // CHUNK


@dataclass(frozen=True)
class Tile:
    """Rows and columns of a block's result, the warps that share each, and steps of operands in shared memory."""

    rows: int
    columns: int
    warps: tuple[int, int]
    stages: int = 3

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return WARP * self.warps[0] * self.warps[1]

    @property
    def shared(self) -> int:
        """Bytes of shared memory."""
        return self.stages * (self.rows + self.columns) * DEPTH * 2


class Operand(Protocol):
    """One side of a product: rows of 16-bit numbers along the reduction."""

    def start(self, pieces: int, row: Callable[[int], Value]) -> None:
        """Prepare this thread's copies of ``pieces`` rows; ``row(i)`` counts from the tile's first one."""

    def copy(self, to: Value, piece: int, k: Value) -> None:
        """Copy eight numbers from the k-th of row ``piece`` to the address ``to``; zeros where there are none."""


class Product:
    """The sums of a tile, a part in each warp: ``across`` x ``along`` fragments of 16 rows x 8 columns."""

    def __init__(self, tile: Tile, dtype: str, thread: Value) -> None:
        self.tile, self.dtype, self.thread = tile, dtype, thread
        self.across, self.along = tile.rows // tile.warps[0] // EDGE, tile.columns // tile.warps[1] // NARROW
        self.lane = T.bind(T.floormod(thread, WARP))
        warp = T.bind(T.floordiv(thread, WARP))
        self.first_row = T.bind(T.floordiv(warp, tile.warps[1]) * (tile.rows // tile.warps[0]))
        self.first_column = T.bind(T.floormod(warp, tile.warps[1]) * (tile.columns // tile.warps[1]))
        self.sums = registers(self.across * self.along * SUMS)
        self.left = registers(self.across * LEFT, "uint32")
        self.right = registers(self.along * RIGHT, "uint32")
        self.memory = [shared((tile.stages, rows, DEPTH)) for rows in (tile.rows, tile.columns)]

    def run(self, left: Operand, right: Operand, depth: int) -> None:
        """Multiply over ``depth`` numbers."""
        fill(self.sums, 0.0)
        stages, steps = self.tile.stages, -(-depth // DEPTH)
        rows_at_once = self.tile.threads // CHUNKS
        sides = [(left, self.memory[0], self.tile.rows), (right, self.memory[1], self.tile.columns)]
        for operand, _, rows in sides:
            operand.start(rows // rows_at_once, lambda i: T.floordiv(self.thread, CHUNKS) + rows_at_once * i)

        def fetch(step: Value) -> None:
            for operand, memory, rows in sides:
                for piece in range(rows // rows_at_once):
                    row, chunk = T.floordiv(self.thread, CHUNKS) + rows_at_once * piece, T.floormod(self.thread, CHUNKS)
                    place = self._place(T.floormod(step, stages), rows, row, chunk)
                    operand.copy(at(memory, place), piece, step * DEPTH + chunk * CHUNK)

        for step in range(stages - 1):
            if step < steps:
                fetch(step)
            call("tvmerge_commit")
        with T.serial(steps) as step:
            call(f"tvmerge_wait<{stages - 2}>")
            synchronise()
            with T.If(step + (stages - 1) < steps), T.Then():
                fetch(step + (stages - 1))
            call("tvmerge_commit")
            stage = T.bind(T.floormod(step, stages))
            with unrolled(DEPTH // EDGE) as half:
                self._multiply(stage, half * (EDGE // CHUNK))
        call("tvmerge_wait<0>")

    @staticmethod
    def _place(stage: Value, rows: int, row: Value, chunk: Value) -> Value:
        shuffled = T.bitwise_xor(chunk, T.floormod(T.floordiv(row, 2), CHUNKS))
        return (stage * rows + row) * DEPTH + shuffled * CHUNK

    def _multiply(self, stage: Value, chunk: Value) -> None:
        """Multiply 16 numbers of the reduction, from chunk ``chunk`` of a row."""
        with unrolled(self.across) as i:
            row = self.first_row + i * EDGE + T.floormod(self.lane, EDGE)
            place = self._place(stage, self.tile.rows, row, chunk + T.floordiv(self.lane, EDGE))
            call("tvmerge_load", at(self.left, i * LEFT), at(self.memory[0], place))
        with unrolled(self.along // 2) as pair:
            row = self.first_column + pair * (2 * NARROW) + T.floormod(self.lane, 8) + T.floordiv(self.lane, EDGE) * 8
            place = self._place(stage, self.tile.columns, row, chunk + T.floormod(T.floordiv(self.lane, 8), 2))
            call("tvmerge_load", at(self.right, pair * (2 * RIGHT)), at(self.memory[1], place))
        with unrolled(self.across) as i:
            with unrolled(self.along) as j:
                sums = at(self.sums, (i * self.along + j) * SUMS)
                call(f"tvmerge_multiply_{self.dtype}", sums, at(self.left, i * LEFT), at(self.right, j * RIGHT))

    def each_row(self, use: Callable[[Value, Callable[[Value], list[Value]], Callable[[Value], Value]], None]) -> None:
        """Run ``use(row, pair, column)`` for this thread's rows: of fragment j it has two sums from a column on."""
        with unrolled(2 * self.across) as index:
            row = self.first_row + T.floordiv(index, 2) * EDGE + T.floormod(index, 2) * 8 + T.floordiv(self.lane, 4)
            first = T.floordiv(index, 2) * (self.along * SUMS) + T.floormod(index, 2) * 2

            def pair(j: Value) -> list[Value]:
                return [self.sums[first + j * SUMS], self.sums[first + j * SUMS + 1]]

            def column(j: Value) -> Value:
                return self.first_column + j * NARROW + T.floormod(self.lane, 4) * 2

            use(T.bind(row), pair, column)
