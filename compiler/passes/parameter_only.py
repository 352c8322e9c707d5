"""Which values of a function depend on nothing but its parameters."""

from __future__ import annotations

from tvm import relax


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
