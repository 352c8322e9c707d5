"""Tokens averaged by slot, and given back to every token of the slot, in 16 bits. Semantics: ``models.token_merging``.

A warp has a slot, whose tokens it looks for, 32 at a time; it adds them in order, in float32. Thus nothing is written
by two, and a result does not depend on who comes first.
"""

from __future__ import annotations

import tvm.tirx.script.builder.ir as T
from tvm import tirx

from compiler.gpu.machine import Gpu
from compiler.gpu.threads import WARP, Scalars, each_vote, fill, grid, registers, unrolled
from compiler.kernels.epilogue import Epilogue
from compiler.kernels.tir import Value, argument, prim_func

WARPS = 8
LARGEST = 512  # channels of a warp, that registers hold


def merge_tokens(batch: int, tokens: int, channels: int, merged: int, gpu: Gpu) -> tirx.PrimFunc:
    """Return the mean by slot as a function of x [B, N, C], int32 slots [B, N] and y [B, N - merged, C]."""
    v, left = Scalars(), tokens - merged
    stripes = -(-channels // LARGEST)
    numbers = -(-channels // (stripes * WARP))  # of a lane

    def body() -> None:
        x, slots = argument("x", (batch, tokens, channels), gpu.dtype), argument("slots", (batch, tokens), "int32")
        y = argument("y", (batch, left, channels), gpu.dtype)
        with grid(WARP * WARPS, -(-left // WARPS), stripes, batch) as (thread, block, stripe, n):
            lane, slot = T.bind(T.floormod(thread, WARP)), T.bind(block * WARPS + T.floordiv(thread, WARP))
            first = T.bind(stripe * (numbers * WARP) + lane)
            sums, size = registers(numbers), registers(1)

            def add(token: Value) -> None:
                T.buffer_store(size, size[0] + T.float32(1), [0])
                with unrolled(numbers) as i:
                    with T.If(first + i * WARP < channels), T.Then():
                        T.buffer_store(sums, sums[i] + v.load(x, n, token, first + i * WARP), [i])

            fill(sums, 0.0)
            fill(size, 0.0)
            with T.If(slot < left), T.Then():  # the same for all lanes of a warp
                with T.serial(-(-tokens // WARP)) as some:
                    token = T.bind(some * WARP + lane)
                    mine = tirx.all(token < tokens, slots[n, T.min(token, tokens - 1)] == slot)
                    each_vote(mine, lambda other: add(some * WARP + other))
                with unrolled(numbers) as i:
                    with T.If(first + i * WARP < channels), T.Then():
                        v.store(y, sums[i] / size[0], n, slot, first + i * WARP)

    return prim_func(body)


def unmerge_tokens(
    batch: int, tokens: int, channels: int, merged: int, operand_rows: tuple[int, ...], gpu: Gpu
) -> tirx.PrimFunc:
    """Return a function of x [B, N - merged, C], int32 slots [B, N], matrices to add, and y [B * N, C]."""
    v, rows = Scalars(), batch * tokens
    epilogue = Epilogue(operand_rows, rows, channels, dtype=gpu.dtype)

    def body() -> None:
        x = argument("x", (batch, tokens - merged, channels), gpu.dtype)
        slots = argument("slots", (batch, tokens), "int32")
        epilogue.declare()
        with grid(WARP * WARPS, -(-rows // WARPS)) as (thread, block):
            lane, row = T.bind(T.floormod(thread, WARP)), T.bind(block * WARPS + T.floordiv(thread, WARP))
            with T.If(row < rows), T.Then():
                n = T.bind(T.floordiv(row, tokens))
                slot = T.bind(slots[n, T.floormod(row, tokens)])
                with T.serial(-(-channels // WARP)) as i:
                    channel = T.bind(i * WARP + lane)
                    with T.If(channel < channels), T.Then():
                        (value,) = epilogue.finish(v, [v.load(x, n, slot, channel)], row, [channel])
                        epilogue.store(v, value, row, channel)

    return prim_func(body)
