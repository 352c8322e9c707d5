"""What stays the same over all steps of a picture leaves the steps' functions: the keys and values of cross-attention.

It is found by dependence: whatever is computed of fixed inputs and weights only is done once a picture.
"""

from __future__ import annotations

import tvm
from tvm import relax

from compiler.graph import bindings, dependent, frontier, is_op, parameter_only, split_params, without

FIXED = "fixed"  # attribute of a function: names of the inputs that stay the same from call to call
CONTEXT = "context"  # attribute of a function: name of the function that gives its last inputs, made of the fixed ones


def _extract(function: relax.Function, inputs: list[relax.Var], kept: list[relax.Var], name: str) -> relax.Function:
    """Return the function that computes ``kept`` of ``inputs`` and weights, as a tuple."""
    needed, steps = set(kept), []
    for binding in reversed(bindings(function)):
        if binding.var in needed:
            needed.update(relax.analysis.free_vars(binding.value))
            steps.append(binding)
    values = relax.Tuple(kept)
    result = relax.Var("kept", relax.TupleType([var.ty for var in kept]))
    block = relax.DataflowBlock([*reversed(steps), relax.VarBinding(result, values)])
    weights = [weight for weight in split_params(function)[1] if weight in needed]
    body = relax.SeqExpr([block], result)
    context = relax.utils.copy_with_new_vars(relax.Function([*inputs, *weights], body, result.ty))
    return context.with_attr({"global_symbol": name, "num_input": len(inputs)})


def _lift(function: relax.Function, name: str) -> tuple[relax.Function, relax.Function] | None:
    """Return what is done once and the rest, or None where nothing but views could be done once."""
    inputs, weights = split_params(function)
    names = {str(fixed) for fixed in (function.attrs or {}).get(FIXED, [])}
    fixed = [variable for variable in inputs if variable.name in names]
    packing = parameter_only(function)
    known = {v: value for v, value in dependent(function, [*fixed, *weights]).items() if v not in packing}
    lifted = [variable for variable, value in known.items() if value is not None]
    if all(is_op(known[variable], "relax.reshape") for variable in lifted):
        return None
    kept = frontier(function, known, lifted)
    new = {variable: relax.Var(f"{CONTEXT}.{index}", variable.ty) for index, variable in enumerate(kept)}
    moving = [variable for variable in inputs if variable not in fixed]
    body = without(function, lifted, new)
    rest = relax.Function([*moving, *new.values(), *weights], body, function.ret_ty, True, function.attrs)
    rest = rest.with_attr({"num_input": len(moving) + len(new), CONTEXT: name})
    return _extract(function, fixed, kept, name), rest


@tvm.transform.module_pass(opt_level=0, name="LiftContext")
class LiftContext:
    """Split every function with fixed inputs into ``NAME_context`` and the rest.

    ``NAME_context`` takes the fixed inputs, then weights, and returns a tuple. The rest takes the inputs that are not
    fixed, the tuple's values, then weights, and names the other in its attribute ``context``.
    """

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        functions = {}
        for variable, function in module.functions_items():
            name = f"{variable.name_hint}_{CONTEXT}"
            lifted = _lift(function, name) if isinstance(function, relax.Function) else None
            if lifted is None:
                functions[variable] = function
            else:
                functions[tvm.ir.GlobalVar(name)], functions[variable] = lifted
        return tvm.IRModule(functions, attrs=module.attrs)
