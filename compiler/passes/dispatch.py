"""Phase 2: operators that a kernel of ours takes become calls of it, with what is added to their result absorbed."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import tvm
from tvm import relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator

from compiler.kernels.register_tile import Machine
from compiler.kernels.registry import KERNEL, Added, Entry, Plan, find
from compiler.passes.parameter_only import bindings, parameter_only
from compiler.passes.simplify import is_op, static_shape


@dataclass
class _Match:
    """An operator, its kernel, and the additions that follow it: (addend, rows) in order."""

    call: relax.Call
    entry: Entry
    added: list[tuple[relax.Expr, int]] = field(default_factory=list)


def _addend_rows(addend: relax.Expr, result: list[int]) -> int | None:
    """Return the rows of ``addend`` seen as a matrix whose rows repeat over those of ``result``, or None."""
    shape = static_shape(addend)
    if len(shape) > len(result) or not shape or shape[-1] != result[-1] or addend.ty.dtype != "float32":
        return None
    leading = [1] * (len(result) - len(shape)) + shape[:-1]
    kept = 0
    while kept < len(leading) and leading[kept] == result[kept]:
        kept += 1
    return math.prod(leading[:kept]) if all(extent == 1 for extent in leading[kept:]) else None


def _match(function: relax.Function, on: dict[str, bool]) -> tuple[dict[relax.Var, _Match], set[relax.Var]]:
    """Return the matches by the variable that their kernel computes, and the variables that vanish."""
    known = parameter_only(function)
    steps = bindings(function)
    uses = Counter(v for step in steps for v in relax.analysis.free_vars(step.value))
    uses.update(relax.analysis.free_vars(function.body.body))
    matches: dict[relax.Var, _Match] = {}
    absorbed: set[relax.Var] = set()
    for step in steps:
        if step.var in known:
            continue
        entry = find(step.value, lambda expr: isinstance(expr, relax.Var) and expr in known, on)
        if entry is not None:
            matches[step.var] = _Match(step.value, entry)
        elif is_op(step.value, "relax.add"):
            _absorb(step, matches, absorbed, uses)
    return matches, absorbed


def _absorb(step: relax.VarBinding, matches: dict[relax.Var, _Match], absorbed: set[relax.Var], uses: Counter) -> None:
    """Move an addition into the kernel whose result nobody else reads."""
    for result, addend in (step.value.args, list(step.value.args)[::-1]):
        if not isinstance(result, relax.Var) or result not in matches or uses[result] != 1:
            continue
        match = matches[result]
        if not match.entry.absorbs or static_shape(result) != static_shape(step.var):
            continue
        if not isinstance(addend, relax.Var) or addend.same_as(result):
            continue
        rows = _addend_rows(addend, static_shape(result))
        if rows is not None:
            match.added.append((addend, rows))
            matches[step.var] = matches.pop(result)
            absorbed.add(result)
            return


@mutator
class _Dispatcher(PyExprMutator):
    def __init__(self, module: tvm.IRModule, machine: Machine) -> None:
        super().__init__(module)
        self.machine = machine
        self.matches: dict[relax.Var, _Match] = {}
        self.absorbed: set[relax.Var] = set()
        self.kernels: dict[tuple, tvm.ir.GlobalVar] = {}

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        if binding.var in self.absorbed:
            return
        match = self.matches.get(binding.var)
        if match is None:
            super().visit_var_binding_(binding)
            return
        call = self.visit_expr_post_order(match.call)
        added = [Added(self.visit_expr(value), rows) for value, rows in match.added]
        plan = match.entry.plan(call, added, self.machine)
        kernel = self._kernel(plan)
        output = relax.TensorType(plan.output, "float32")
        result = self.builder_.emit(relax.call_tir(kernel, plan.operands(self.builder_), output))
        shape = static_shape(binding.var)
        final = result if plan.output == shape else self.builder_.emit(relax.op.reshape(result, shape))
        if isinstance(binding.var, relax.DataflowVar):
            self.set_var_remap(binding.var, final)
        else:
            self.set_var_remap(binding.var, self.builder_.emit_output(final))

    def _kernel(self, plan: Plan) -> tvm.ir.GlobalVar:
        """Add the kernel's function to the module, once for equal arguments."""
        key = (plan.name, plan.arguments)
        if key not in self.kernels:
            function: tirx.PrimFunc = plan.make(*plan.arguments).with_attr(KERNEL, plan.name)
            self.kernels[key] = self.builder_.add_func(function, f"{plan.name}_{len(self.kernels)}")
        return self.kernels[key]


@tvm.transform.module_pass(opt_level=0, name="Dispatch")
class Dispatch:
    """Replace what the registry's kernels take; operators of disabled optimisations stay for phase 3."""

    def __init__(self, machine: Machine, on: dict[str, bool]) -> None:
        self.machine = machine
        self.on = on

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        dispatcher = _Dispatcher(module, self.machine)
        for variable, function in module.functions_items():
            if isinstance(function, relax.Function):
                dispatcher.matches, dispatcher.absorbed = _match(function, self.on)
                dispatcher.builder_.update_func(variable, dispatcher.visit_expr(function))
        return dispatcher.builder_.get()
