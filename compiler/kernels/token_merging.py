"""Tokens averaged by slot, and given back to every token of the slot. Semantics: ``models.token_merging``."""

from __future__ import annotations

import tvm.tirx.script.builder.ir as T
from tvm import tirx

from compiler.kernels.epilogue import Epilogue
from compiler.kernels.register_tile import Machine
from compiler.kernels.tir import Vectors, argument, prim_func, scratch

STRIPES = 8  # stripes of tokens per core


def _lanes(channels: int, machine: Machine) -> int:
    return max(d for d in range(1, machine.lanes + 1) if channels % d == 0)


def merge_tokens(batch: int, tokens: int, channels: int, merged: int, machine: Machine) -> tirx.PrimFunc:
    """Return the mean by slot as a function of x [B, N, C], int32 slots [B, N] and y [B, N - merged, C].

    A task has some channels of one picture, so that no two write to the same place.
    """
    lanes = _lanes(channels, machine)
    v, vectors, left = Vectors(lanes), channels // lanes, tokens - merged
    stripes = min(vectors, 2 * machine.cores)
    stripe = -(-vectors // stripes)

    def body() -> None:
        x, slots = argument("x", (batch, tokens, channels)), argument("slots", (batch, tokens), "int32")
        y = argument("y", (batch, left, channels))
        with T.parallel(batch * stripes) as task:
            n, first = task // stripes, task % stripes * stripe
            end = T.min(first + stripe, vectors)
            sizes = scratch((left,))
            with T.serial(left) as slot:
                T.buffer_store(sizes, T.float32(0), [slot])
                with T.serial(first, end) as block:
                    v.store(y, v.all(0.0), n, slot, block * lanes)
            with T.serial(tokens) as token:
                slot = T.bind(slots[n, token])
                T.buffer_store(sizes, sizes[slot] + T.float32(1), [slot])
                with T.serial(first, end) as block:
                    c = block * lanes
                    v.store(y, v.load(y, n, slot, c) + v.load(x, n, token, c), n, slot, c)
            with T.serial(left) as slot:
                share = T.bind(T.float32(1) / sizes[slot])
                with T.serial(first, end) as block:
                    v.store(y, v.load(y, n, slot, block * lanes) * v.all(share), n, slot, block * lanes)

    return prim_func(body)


def unmerge_tokens(
    batch: int, tokens: int, channels: int, merged: int, operand_rows: tuple[int, ...], machine: Machine
) -> tirx.PrimFunc:
    """Return a function of x [B, N - merged, C], int32 slots [B, N], matrices to add, and y [B * N, C]."""
    lanes = _lanes(channels, machine)
    v, rows = Vectors(lanes), batch * tokens
    epilogue = Epilogue(operand_rows, rows, channels)
    stripes = min(STRIPES * machine.cores, rows)
    stripe = -(-rows // stripes)

    def body() -> None:
        x, slots = argument("x", (batch, tokens - merged, channels)), argument("slots", (batch, tokens), "int32")
        epilogue.declare()
        with T.parallel(stripes) as task:
            with T.serial(task * stripe, T.min(task * stripe + stripe, rows)) as row:
                n, slot = row // tokens, T.bind(slots[row // tokens, row % tokens])
                with T.serial(channels // lanes) as block:
                    (value,) = epilogue.finish(v, [v.load(x, n, slot, block * lanes)], row, [block * lanes])
                    epilogue.store(v, value, row, block * lanes)

    return prim_func(body)
