"""Questions about Relax graphs that passes and kernels share. Every shape here is static."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TypeGuard

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator


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


def split_params(function: relax.Function) -> tuple[list[relax.Var], list[relax.Var]]:
    """Return a function's inputs and its weights: the first ``num_input`` parameters and the others."""
    count = int(function.attrs["num_input"])
    return list(function.params[:count]), list(function.params[count:])


def dependent(function: relax.Function, leaves: Iterable[relax.Var]) -> dict[relax.Var, relax.Expr | None]:
    """Return the variables that depend on ``leaves`` only, with their values; one of ``leaves`` itself has None."""
    found: dict[relax.Var, relax.Expr | None] = dict.fromkeys(leaves)
    for binding in bindings(function):
        used = relax.analysis.free_vars(binding.value)
        if used and all(v in found for v in used) and isinstance(binding.var.ty, relax.TensorType):
            found[binding.var] = binding.value
    return found


def parameter_only(function: relax.Function) -> dict[relax.Var, relax.Expr | None]:
    """Return the variables that depend on weights only, with their values; a weight itself has None."""
    return dependent(function, split_params(function)[1])


def frontier(function: relax.Function, known: Mapping[relax.Var, object], left: Iterable[relax.Var]) -> list[relax.Var]:
    """Return the variables of ``known`` that are read after the bindings of ``left`` have left the function."""
    left = set(left)
    read = [v for b in bindings(function) if b.var not in left for v in relax.analysis.free_vars(b.value)]
    read += relax.analysis.free_vars(function.body.body)
    return list(dict.fromkeys(v for v in read if v in known))


def called_functions(function: relax.Function) -> list[str]:
    """Return the names of the functions in TensorIR that ``function`` calls, once a call."""
    found: list[str] = []

    def visit(expression: relax.Expr) -> None:
        if is_op(expression, "relax.call_tir"):
            found.append(expression.args[0].name_hint)

    relax.analysis.post_order_visit(function, visit)
    return found


@mutator
class _Remove(PyExprMutator):
    """Rebuild a function without the bindings in ``dropped``."""

    def __init__(self, dropped: set[relax.Var]) -> None:
        super().__init__(tvm.IRModule())
        self.dropped = dropped

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        if binding.var not in self.dropped:
            super().visit_var_binding_(binding)


def without(function: relax.Function, left: Iterable[relax.Var], new: Mapping[relax.Var, relax.Var]) -> relax.Expr:
    """Return the body of ``function`` without the bindings of ``left``; variables in ``new`` are replaced."""
    remover = _Remove(set(left))
    for old, replacement in new.items():
        remover.set_var_remap(old, replacement)
    return remover.visit_expr(function.body)
