"""Phase 2: operators that a kernel of ours takes become calls of it, with what is added to their result absorbed."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

import tvm
from tvm import relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator

from compiler.costs import operator_flops, with_costs
from compiler.gpu.machine import Gpu
from compiler.graph import bindings, is_op, parameter_only, scalar_value, static_shape
from compiler.kernels.activation import QUICK
from compiler.kernels.epilogue import GEGLU
from compiler.kernels.plan import KERNEL, Added, Entry, Fused, Plan
from compiler.kernels.register_tile import Machine
from compiler.kernels.tunable import make
from compiler.registry import find

BY_RECORD = " by record"  # behind the name of a kernel whose tiling a record chose


class Tilings(Protocol):
    """Whoever knows what to choose of the kernels that can be tuned."""

    def choose(self, function: str, plan: Plan, call: relax.Call) -> dict[str, int]:
        """Return what to choose of a kernel that ``function`` calls; nothing leaves it as it is."""


@dataclass
class _Match:
    """An operator, its kernel, and what the kernel does besides (see ``Fused``): (addend, rows) in order, and so on."""

    call: relax.Call
    entry: Entry
    added: list[tuple[relax.Expr, int]] = field(default_factory=list)
    activation: str | None = None
    upsample: int = 1
    results: int = 1
    joined: list[relax.Expr] = field(default_factory=list)


def _addend_rows(addend: relax.Expr, result: list[int], dtype: str) -> int | None:
    """Return the rows of ``addend`` seen as a matrix whose rows repeat over those of ``result``, or None."""
    shape = static_shape(addend)
    if len(shape) > len(result) or not shape or shape[-1] != result[-1] or addend.ty.dtype != dtype:
        return None
    leading = [1] * (len(result) - len(shape)) + shape[:-1]
    kept = 0
    while kept < len(leading) and leading[kept] == result[kept]:
        kept += 1
    return math.prod(leading[:kept]) if all(extent == 1 for extent in leading[kept:]) else None


class _Matcher:
    """Finds the operators of a function that kernels take, and their tails."""

    def __init__(self, function: relax.Function, machine: Machine | Gpu, on: dict[str, bool], used: set[str]) -> None:
        self.machine, self.on, self.used = machine, on, used
        self.known = parameter_only(function)
        self.steps = bindings(function)
        self.values = {step.var: step.value for step in self.steps}
        self.uses = Counter(v for step in self.steps for v in relax.analysis.free_vars(step.value))
        self.uses.update(relax.analysis.free_vars(function.body.body))
        self.matches: dict[relax.Var, _Match] = {}
        self.absorbed: set[relax.Var] = set()

    def run(self) -> None:
        """Fill ``matches``, by the variable that a kernel computes, and ``absorbed``, the variables that vanish."""
        for step in self.steps:
            if step.var in self.known:
                continue
            match = self._absorb_upsampling(step.value) or self._match(step.value)
            if match is not None:
                self.used.update(match.entry.optimisations)
                self.matches[step.var] = match
            elif is_op(step.value, "relax.add"):
                self._absorb_add(step)
            elif is_op(step.value, "relax.nn.silu") or is_op(step.value, "relax.nn.gelu"):
                self._absorb_activation(step, step.value.args[0], step.value.op.name.rpartition(".")[2], [])
            elif is_op(step.value, "relax.multiply"):
                self._absorb_geglu(step)
                self._absorb_quick_gelu(step)
        for step in self.steps:
            if is_op(step.value, "relax.split") and step.var not in self.absorbed:
                self._absorb_split(step)
            elif is_op(step.value, "relax.concat") and self.on["fused_concat"]:
                self._absorb_concat(step)

    def _match(self, value: relax.Expr, upsample: int = 1) -> _Match | None:
        """Return the match of an operator that a kernel takes, where it can read data that is upsampled on the way."""
        entry = find(value, lambda x: isinstance(x, relax.Var) and x in self.known, self.machine, self.on, upsample)
        return None if entry is None else _Match(value, entry)

    def _absorb_upsampling(self, value: relax.Expr) -> _Match | None:
        """Let a kernel read what is upsampled, if there is one and nobody else reads the result."""
        if not isinstance(value, relax.Call) or not value.args or not isinstance(value.args[0], relax.Var):
            return None
        data, *others = value.args
        resize = self.values.get(data)
        if not is_op(resize, "relax.image.resize2d") or self.uses[data] != 1:
            return None
        attrs = resize.attrs
        way = (str(attrs.layout), str(attrs.method), str(attrs.coordinate_transformation_mode))
        (height, width), (tall, wide) = (static_shape(value)[1:3] for value in (resize.args[0], data))
        factor = tall // height
        if way != ("NHWC", "nearest_neighbor", "asymmetric") or (tall, wide) != (height * factor, width * factor):
            return None
        match = self._match(value, factor)
        if match is None:
            return None
        self.absorbed.add(data)
        call = relax.Call(value.op, [resize.args[0], *others], value.attrs)
        return _Match(call, match.entry, upsample=factor)

    def _open(self, result: relax.Expr, uses: int = 1) -> _Match | None:
        """Return the match that computes ``result`` if it is read ``uses`` times and its tail can still grow."""
        if not isinstance(result, relax.Var) or result not in self.matches or self.uses[result] != uses:
            return None
        match = self.matches[result]
        return match if match.activation is None else None

    def _absorb(self, match: _Match, result: relax.Var, vanishing: list[relax.Var], into: relax.Var) -> None:
        self.absorbed.update([result, *vanishing])
        del self.matches[result]
        self.matches[into] = match

    def _absorb_add(self, step: relax.VarBinding) -> None:
        for result, addend in (step.value.args, list(step.value.args)[::-1]):
            match = self._open(result)
            if match is None or not match.entry.adds or static_shape(result) != static_shape(step.var):
                continue
            if not isinstance(addend, relax.Var) or addend.same_as(result):
                continue
            rows = _addend_rows(addend, static_shape(result), self.machine.dtype)
            if rows is not None:
                match.added.append((addend, rows))
                self._absorb(match, result, [], step.var)
                return

    def _absorb_split(self, step: relax.VarBinding) -> None:
        """Let the kernel write even shares of its columns, in whole panels, as results of their own."""
        (result,) = step.value.args
        match = self._open(result)
        shapes = [[int(extent) for extent in field.shape] for field in step.var.ty.fields]
        width = shapes[0][-1]
        even = all(shape == [*static_shape(result)[:-1], width] for shape in shapes)
        if match is not None and match.entry.splits and even and width % self.machine.panel == 0:
            match.results = len(shapes)
            self._absorb(match, result, [], step.var)

    def _absorb_concat(self, step: relax.VarBinding) -> None:
        """Let all kernels that read what is joined along the channels read its parts."""
        parts = step.value.args[0]
        readers = [match for match in self.matches.values() if match.call.args[0].same_as(step.var)]
        last = len(static_shape(step.var)) - 1
        if not isinstance(parts, relax.Tuple) or int(step.value.attrs.axis) != last or not readers:
            return
        widths = [static_shape(part)[-1] for part in parts.fields]
        can = all(match.entry.joins(match.call, widths, self.machine) for match in readers)
        if can and len(readers) == self.uses[step.var]:
            for match in readers:
                match.joined = list(parts.fields)
            self.absorbed.add(step.var)
            self.used.add("fused_concat")

    def _absorb_activation(
        self, step: relax.VarBinding, result: relax.Expr, activation: str, vanishing: list[relax.Var], uses: int = 1
    ) -> None:
        match = self._open(result, uses)
        if match is not None and activation in match.entry.activations and self.on[match.entry.fuses]:
            match.activation = activation
            self.used.add(match.entry.fuses)
            self._absorb(match, result, vanishing, step.var)

    def _absorb_geglu(self, step: relax.VarBinding) -> None:
        """Take ``split`` into halves, GELU of the second and the product of both into the multiply before them."""
        value, gate = step.value.args
        if not isinstance(value, relax.Var) or not isinstance(gate, relax.Var):
            return
        activated = self.values.get(gate)
        if not is_op(activated, "relax.nn.gelu"):
            return
        first, second = self.values.get(value), self.values.get(activated.args[0])
        if not isinstance(first, relax.TupleGetItem) or not isinstance(second, relax.TupleGetItem):
            return
        pair = first.tuple_value
        split = self.values.get(pair)
        vanishing = [pair, value, activated.args[0], gate]
        once = all(self.uses[v] == (2 if v.same_as(pair) else 1) for v in vanishing)
        if (
            (first.index, second.index) != (0, 1)
            or not pair.same_as(second.tuple_value)
            or not is_op(split, "relax.split")
            or not once
        ):
            return
        width = static_shape(step.var)[-1]
        if static_shape(split.args[0])[-1] == 2 * width and width % self.machine.lanes == 0:
            self._absorb_activation(step, split.args[0], GEGLU, vanishing)

    def _absorb_quick_gelu(self, step: relax.VarBinding) -> None:
        """Take ``x sigmoid(1.702 x)`` into the multiply that computes x."""
        value, gate = step.value.args
        sigmoid = self.values.get(gate) if isinstance(gate, relax.Var) else None
        if not is_op(sigmoid, "relax.sigmoid"):
            return
        scaled = self.values.get(sigmoid.args[0])
        if not is_op(scaled, "relax.multiply") or not scaled.args[0].same_as(value):
            return
        factor, vanishing = scalar_value(scaled.args[1]), [sigmoid.args[0], gate]
        if (
            factor is not None
            and math.isclose(factor, QUICK, rel_tol=1e-6)
            and all(self.uses[v] == 1 for v in vanishing)
        ):
            self._absorb_activation(step, value, "quick_gelu", vanishing, uses=2)


@mutator
class _Dispatcher(PyExprMutator):
    def __init__(self, module: tvm.IRModule, machine: Machine | Gpu, tilings: Tilings | None, used: set[str]) -> None:
        super().__init__(module)
        self.machine = machine
        self.matches: dict[relax.Var, _Match] = {}
        self.absorbed: set[relax.Var] = set()
        self.kernels: dict[tuple, tvm.ir.GlobalVar] = {}
        self.tilings, self.used, self.function = tilings, used, ""

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        if binding.var in self.absorbed:
            return
        match = self.matches.get(binding.var)
        if match is None:
            super().visit_var_binding_(binding)
            return
        call = self.visit_expr_post_order(match.call)
        added = [Added(self.visit_expr(value), rows) for value, rows in match.added]
        joined = [self.visit_expr(value) for value in match.joined]
        fused = Fused(added, match.activation, match.upsample, match.results, joined)
        plan = match.entry.plan(call, fused, self.machine)
        outputs = [relax.TensorType(plan.output, plan.dtype)] * plan.results
        result = self.builder_.emit(relax.call_tir(self._kernel(plan, call), plan.operands(self.builder_), outputs))
        if plan.results == 1:
            final = self._reshaped(result, static_shape(binding.var))
            if plan.dtype != binding.var.ty.dtype:
                final = self.builder_.emit(relax.op.astype(final, binding.var.ty.dtype))
        else:
            shapes = [[int(extent) for extent in field.shape] for field in binding.var.ty.fields]
            items = [self.builder_.emit(relax.TupleGetItem(result, index)) for index in range(plan.results)]
            final = self.builder_.emit(relax.Tuple([self._reshaped(*pair) for pair in zip(items, shapes, strict=True)]))
        if isinstance(binding.var, relax.DataflowVar):
            self.set_var_remap(binding.var, final)
        else:
            self.set_var_remap(binding.var, self.builder_.emit_output(final))

    def _reshaped(self, value: relax.Var, shape: list[int]) -> relax.Var:
        return value if static_shape(value) == shape else self.builder_.emit(relax.op.reshape(value, shape))

    def _kernel(self, plan: Plan, call: relax.Call) -> tvm.ir.GlobalVar:
        """Add the kernel's function to the module, once for equal arguments."""
        key = (plan.name, plan.arguments)
        chosen = {} if self.tilings is None else self.tilings.choose(self.function, plan, call)
        if key not in self.kernels:
            function: tirx.PrimFunc
            if chosen:
                self.used.add("tuned")
                function = make(plan.name, plan.arguments, chosen).with_attr(KERNEL, plan.name + BY_RECORD)
            else:
                function = plan.make(*plan.arguments).with_attr(KERNEL, plan.name)
            function = with_costs(function, operator_flops(call, plan.output))
            self.kernels[key] = self.builder_.add_func(function, f"{plan.name}_{len(self.kernels)}")
        return self.kernels[key]


@tvm.transform.module_pass(opt_level=0, name="Dispatch")
class Dispatch:
    """Replace what the registry's kernels take; operators of disabled optimisations stay for phase 3.

    ``used`` receives the names of the optimisations that were of use; ``tilings`` choose for kernels that can be tuned.
    """

    def __init__(
        self, machine: Machine | Gpu, on: dict[str, bool], used: set[str], tilings: Tilings | None = None
    ) -> None:
        self.machine, self.on, self.used = machine, on, used
        self.tilings = tilings if on["tuned"] else None

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        dispatcher = _Dispatcher(module, self.machine, self.tilings, self.used)
        for variable, function in module.functions_items():
            if isinstance(function, relax.Function):
                matcher = _Matcher(function, self.machine, self.on, self.used)
                matcher.run()
                dispatcher.matches, dispatcher.absorbed = matcher.matches, matcher.absorbed
                dispatcher.function = variable.name_hint
                dispatcher.builder_.update_func(variable, dispatcher.visit_expr(function))
        return dispatcher.builder_.get()
