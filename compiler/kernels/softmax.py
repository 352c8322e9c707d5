"""Softmax over the last axis: a row is read once from memory and stays in cache for its three passes.

Source: Bridle, Probabilistic Interpretation of Feedforward Classification Network Outputs (1990).
"""

from __future__ import annotations

import math

import tvm.tirx.script.builder.ir as T
from tvm import tirx

from compiler.kernels.register_tile import Machine
from compiler.kernels.tir import Value, Vectors, argument, local, prim_func

STRIPES = 4  # stripes of rows per core


def softmax(rows: int, columns: int, machine: Machine) -> tirx.PrimFunc:
    """Return softmax over the columns as a function of x [rows, columns] and y."""
    lanes = max(d for d in range(1, machine.lanes + 1) if columns % d == 0)
    v = Vectors(lanes)
    stripes = min(STRIPES * machine.cores, rows)
    stripe_rows = -(-rows // stripes)

    def across(accumulator: Value, join: Value) -> Value:
        """Join the lanes of the accumulator to one number."""
        total = accumulator[0]
        for lane in range(1, lanes):
            total = join(total, accumulator[lane])
        return T.bind(total)

    def body() -> None:
        x, y = argument("x", (rows, columns)), argument("y", (rows, columns))
        with T.parallel(stripes) as stripe:
            accumulator = local(lanes)
            with T.serial(stripe * stripe_rows, T.min(rows, stripe * stripe_rows + stripe_rows)) as row:
                v.store(accumulator, v.load(x, row, 0), 0)
                with T.serial(columns // lanes) as c:
                    v.store(accumulator, T.max(v.load(accumulator, 0), v.load(x, row, c * lanes)), 0)
                top = across(accumulator, T.max)
                v.store(accumulator, v.all(0.0), 0)
                with T.serial(columns // lanes) as c:
                    away = (v.load(x, row, c * lanes) - v.all(top)) * v.all(math.log2(math.e))
                    (power,) = v.exp2([T.bind(away)])
                    v.store(y, power, row, c * lanes)
                    v.store(accumulator, v.load(accumulator, 0) + power, 0)
                inverse = T.bind(T.float32(1) / across(accumulator, lambda a, b: a + b))
                with T.serial(columns // lanes) as c:
                    v.store(y, v.load(y, row, c * lanes) * v.all(inverse), row, c * lanes)

    return prim_func(body)
