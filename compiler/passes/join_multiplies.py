"""Phase 2: two or three multiplies of the same matrix, such as queries, keys and values, become one."""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import relax

from compiler.gpu.machine import Gpu
from compiler.graph import static_shape
from compiler.kernels.register_tile import Machine

MOST = 3  # the context meets the keys and values of all layers, but once a picture


def join_multiplies(machine: Machine | Gpu) -> tvm.ir.transform.Pass:
    """Return a pass that joins the weights of such multiplies and splits the result.

    Only weights of the same shape in whole panels are joined: the kernel then writes the shares of the result itself.
    """

    def joins(_data: relax.Var, weights: Sequence[relax.Var], *_others: object) -> bool:
        shapes = [static_shape(weight) for weight in weights]
        alike = all(shape == shapes[0] for shape in shapes)
        return alike and len(shapes) <= MOST and len(shapes[0]) == 2 and shapes[0][1] % machine.panel == 0

    return relax.transform.CombineParallelMatmul(joins)
