"""LayerNorm over the channels in 16 bits, a warp for each row, sums in float32. Source: Ba et al. (2016)."""

from __future__ import annotations

from collections.abc import Callable

import tvm.tirx.script.builder.ir as T
from tvm import tirx

from compiler.gpu.machine import Gpu
from compiler.gpu.threads import WARP, Scalars, grid, join_lanes, registers
from compiler.kernels.tir import Value, argument, prim_func

WARPS = 4


def layer_norm(rows: int, channels: int, epsilon: float, gpu: Gpu) -> tirx.PrimFunc:
    """Return LayerNorm as a function of x [rows, channels], gamma [channels], beta [channels] and y."""
    v = Scalars()

    def body() -> None:
        x = argument("x", (rows, channels), gpu.dtype)
        gamma, beta = (argument(name, (channels,), gpu.dtype) for name in ("gamma", "beta"))
        y = argument("y", (rows, channels), gpu.dtype)
        with grid(WARP * WARPS, -(-rows // WARPS)) as (thread, block):
            lane, row = T.bind(T.floormod(thread, WARP)), T.bind(block * WARPS + T.floordiv(thread, WARP))
            state = registers(3)  # a sum or its mean, the mean of the row, what it is scaled by

            def each(use: Callable[[Value, Value], None]) -> None:
                with T.serial(-(-channels // WARP)) as i:
                    channel = T.bind(i * WARP + lane)
                    with T.If(channel < channels), T.Then():
                        use(T.bind(v.load(x, row, channel)), channel)

            def mean(of: Callable[[Value], Value]) -> None:
                T.buffer_store(state, T.float32(0), [0])
                each(lambda value, _channel: T.buffer_store(state, state[0] + of(value), [0]))
                join_lanes(state, 0, lambda a, b: a + b)
                T.buffer_store(state, state[0] / T.float32(channels), [0])

            def write(value: Value, channel: Value) -> None:
                scaled = (value - state[1]) * state[2] * v.load(gamma, channel) + v.load(beta, channel)
                v.store(y, scaled, row, channel)

            with T.If(row < rows), T.Then():  # the same for all lanes of a warp
                mean(lambda value: value)
                T.buffer_store(state, state[0], [1])
                mean(lambda value: (value - state[1]) * (value - state[1]))
                T.buffer_store(state, T.float32(1) / T.sqrt(state[0] + T.float32(epsilon)), [2])
                each(write)

    return prim_func(body)
