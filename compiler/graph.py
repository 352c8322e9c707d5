"""Questions about Relax graphs that passes and kernels share. Every shape here is static."""

from __future__ import annotations

import math
from typing import TypeGuard

import tvm
from tvm import relax


def static_shape(expr: relax.Expr) -> list[int]:
    """Return the shape of a tensor expression; every shape here is static."""
    return [int(extent) for extent in expr.ty.shape]


def is_op(expr: relax.Expr | None, name: str) -> TypeGuard[relax.Call]:
    """Tell whether ``expr`` is a call of the Relax operator ``name``."""
    return isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op) and expr.op.name == name


def scalar_value(expr: relax.Expr) -> float | None:
    """Return the value of a constant of one element, None for anything else."""
    if not isinstance(expr, tvm.ir.GenericConst) or not isinstance(expr.ty, relax.TensorType):
        return None
    return float(expr.value.numpy().reshape(())) if math.prod(static_shape(expr)) == 1 else None


def bindings(function: relax.Function) -> list[relax.VarBinding]:
    """Return all bindings of a function in order."""
    return [binding for block in function.body.blocks for binding in block.bindings]


def parameter_only(function: relax.Function) -> dict[relax.Var, relax.Expr | None]:
    """Return the variables that depend on parameters only, with their values; a parameter itself has None.

    The first ``num_input`` parameters of a function are its inputs, the others its weights.
    """
    found: dict[relax.Var, relax.Expr | None] = dict.fromkeys(function.params[int(function.attrs["num_input"]) :])
    for binding in bindings(function):
        used = relax.analysis.free_vars(binding.value)
        if used and all(v in found for v in used) and isinstance(binding.var.ty, relax.TensorType):
            found[binding.var] = binding.value
    return found
