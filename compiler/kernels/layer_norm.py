"""LayerNorm over the last axis: a row is read once from memory and stays in the first cache level for its three passes.

Source: Ba, Kiros and Hinton, Layer Normalization (2016).
"""

from __future__ import annotations

import tvm.tirx.script.builder.ir as T
from tvm import tirx

from compiler.kernels.register_tile import Machine
from compiler.kernels.tir import Value, Vectors, argument, local, prim_func

STRIPES = 4  # stripes of rows per core


def layer_norm(rows: int, channels: int, epsilon: float, machine: Machine) -> tirx.PrimFunc:
    """Return LayerNorm as a function of x [rows, channels], gamma [channels], beta [channels] and y."""
    lanes = max(d for d in range(1, machine.lanes + 1) if channels % d == 0)
    v = Vectors(lanes)
    stripes = min(STRIPES * machine.cores, rows)
    stripe_rows = -(-rows // stripes)

    def sum_of(accumulator: Value, term: Value) -> Value:
        """Return the sum of ``term(c)`` over all channels."""
        v.store(accumulator, v.all(0.0), 0)
        with T.serial(channels // lanes) as c:
            v.store(accumulator, v.load(accumulator, 0) + term(c * lanes), 0)
        total = accumulator[0]
        for lane in range(1, lanes):
            total = total + accumulator[lane]
        return T.bind(total)

    def body() -> None:
        x, gamma = argument("x", (rows, channels)), argument("gamma", (channels,))
        beta, y = argument("beta", (channels,)), argument("y", (rows, channels))
        with T.parallel(stripes) as stripe:
            accumulator = local(lanes)
            with T.serial(stripe * stripe_rows, T.min(rows, stripe * stripe_rows + stripe_rows)) as row:
                mean = T.bind(sum_of(accumulator, lambda c: v.load(x, row, c)) / T.float32(channels))

                def away(c: Value) -> Value:
                    return T.bind(v.load(x, row, c) - v.all(mean))

                squares = sum_of(accumulator, lambda c: (lambda d: d * d)(away(c)))
                inverse = T.bind(T.float32(1) / T.sqrt(squares / T.float32(channels) + T.float32(epsilon)))
                with T.serial(channels // lanes) as block:
                    c = block * lanes
                    v.store(y, away(c) * v.all(inverse) * v.load(gamma, c) + v.load(beta, c), row, c)

    return prim_func(body)
