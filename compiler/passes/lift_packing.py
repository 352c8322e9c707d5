"""What depends on parameters only leaves the functions and becomes packing, done once at build time.

Each distinct packing is a function of its own in the library (``pack_0``, ``pack_1``, ...), so that the runtime can
pack a changed weight without torch and without the compiler.
"""

from __future__ import annotations

import json
import re

import tvm
import tvm_ffi
from tvm import relax

from compiler.graph import frontier, parameter_only, split_params, without


def _variable(name: str, kind: relax.Type) -> relax.Var:
    """Return a packed parameter; every language that code is generated in can spell it."""
    return relax.Var(re.sub(r"\W", "_", name), kind)


class _Packings:
    """The packings of a component, shared by its functions."""

    def __init__(self) -> None:
        self.functions: list[relax.Function] = []
        self.table: dict[str, dict] = {}  # packed name -> {"function", "sources"}
        self.types: dict[str, relax.Type] = {}

    def add(self, function: relax.Function | None, sources: list[str], kind: relax.Type) -> str:
        """Register a packing and return the packed parameter's name; equal ones get the same."""
        name = "" if function is None else f"pack_{self._index(function)}"
        packed = sources[0] if function is None else f"{'+'.join(sources)}@{name}"
        self.table[packed] = {"function": name, "sources": sources}
        self.types[packed] = kind
        return packed

    def _index(self, function: relax.Function) -> int:
        for index, known in enumerate(self.functions):
            if tvm_ffi.structural_equal(known, function, map_free_vars=True):
                return index
        self.functions.append(function)
        return len(self.functions) - 1


def _extract(var: relax.Var, bindings: dict[relax.Var, relax.Expr]) -> tuple[relax.Function, list[relax.Var]]:
    """Return the function that computes ``var`` from parameters, and those parameters in order of first use."""
    order: dict[relax.Var, None] = {}
    leaves: dict[relax.Var, None] = {}

    def collect(v: relax.Var) -> None:
        if v not in bindings:
            leaves.setdefault(v)
        elif v not in order:
            for used in relax.analysis.free_vars(bindings[v]):
                collect(used)
            order[v] = None

    collect(var)
    result = relax.Var("packed", var.ty)
    steps = [relax.VarBinding(v, bindings[v]) for v in order]
    block = relax.DataflowBlock([*steps, relax.VarBinding(result, var)])
    function = relax.Function(list(leaves), relax.SeqExpr([block], result), var.ty)
    return relax.utils.copy_with_new_vars(function), list(leaves)


def _lift(function: relax.Function, packings: _Packings) -> tuple[relax.Function, dict[str, relax.Var]]:
    """Return ``function`` without its packing, and the packed parameters that it uses by name."""
    known = parameter_only(function)
    packing = {var: value for var, value in known.items() if value is not None}
    new: dict[str, relax.Var] = {}
    replaced: dict[relax.Var, relax.Var] = {}
    for var in frontier(function, known, packing):
        if known[var] is None:
            name = packings.add(None, [var.name], var.ty)
        else:
            packed, leaves = _extract(var, packing)
            name = packings.add(packed, [leaf.name for leaf in leaves], var.ty)
        replaced[var] = new.setdefault(name, _variable(name, var.ty))
    inputs, _ = split_params(function)
    body = without(function, packing, replaced)
    return relax.Function([*inputs, *new.values()], body, function.ret_ty, True, function.attrs), new


@tvm.transform.module_pass(opt_level=0, name="LiftPacking")
class LiftPacking:
    """Split every function into packing and the rest.

    Afterwards each function takes its inputs, then all packed parameters of the component, in the order of the module
    attribute ``packing``: a JSON object, packed name -> {"function", "sources"}, where an empty function name means the
    raw parameter itself.
    """

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        packings = _Packings()
        lifted = {g: _lift(f, packings) for g, f in module.functions_items() if isinstance(f, relax.Function)}
        functions = {g: f for g, f in module.functions_items() if not isinstance(f, relax.Function)}
        for variable, (function, used) in lifted.items():
            inputs, _ = split_params(function)
            packed = [used[name] if name in used else _variable(name, kind) for name, kind in packings.types.items()]
            functions[variable] = relax.Function(
                [*inputs, *packed], function.body, function.ret_ty, True, function.attrs
            )
        for index, function in enumerate(packings.functions):
            name = f"pack_{index}"
            functions[tvm.ir.GlobalVar(name)] = function.with_attr({"global_symbol": name, "num_input": 0})
        return tvm.IRModule(functions, attrs={"packing": json.dumps(packings.table)})
