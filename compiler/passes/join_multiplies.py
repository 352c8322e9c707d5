"""Phase 2: two or three multiplies of the same matrix, such as queries, keys and values, become one.

TVM's CombineParallelMatmul does the same, but ends at the first group of multiplies that it may not join: in a UNet
those of the embedded timestep.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import tvm
from tvm import relax

from compiler.gpu.machine import Gpu
from compiler.graph import bindings, is_op, parameter_only, static_shape
from compiler.kernels.register_tile import Machine

MOST = 3  # the context meets the keys and values of all layers, but once a picture


@dataclass(frozen=True)
class _Branch:
    """A multiply by a weight, the bias that is added to it if there is one, and the variable of the result."""

    multiply: relax.VarBinding
    result: relax.Var
    bias: relax.Var | None

    @property
    def alike(self) -> tuple[object, ...]:
        """What branches that become one have in common."""
        weight = self.multiply.value.args[1]
        return *static_shape(weight), weight.ty.dtype, self.bias is None


class _Joiner:
    """Joins multiplies of one function."""

    def __init__(self, function: relax.Function, machine: Machine | Gpu) -> None:
        self.function, self.machine = function, machine
        self.known = parameter_only(function)
        self.steps = bindings(function)
        self.builder = relax.BlockBuilder()
        self.users: dict[relax.Var, list[relax.VarBinding]] = defaultdict(list)
        for step in self.steps:
            for variable in relax.analysis.free_vars(step.value):
                self.users[variable].append(step)

    def run(self) -> relax.Function:
        """Return the function, what depends on weights only first: a joined multiply needs the weights of all."""
        groups = self._groups()
        if not groups:
            return self.function
        opening = {group[0].multiply.var: group for group in groups}
        left = {var for group in groups for branch in group for var in (branch.multiply.var, branch.result)}
        steps = [step for step in self.steps if step.var in self.known]
        for step in self.steps:
            if step.var in opening:
                steps += self._joined(opening[step.var])
            elif step.var not in self.known and step.var not in left:
                steps.append(step)
        body = relax.SeqExpr([relax.DataflowBlock(steps)], self.function.body.body)
        f = self.function
        return relax.Function(f.params, body, f.ret_ty, f.is_pure, f.attrs)

    def _groups(self) -> list[list[_Branch]]:
        """Return the branches that become one.

        All are of one shape, in whole panels: the kernel then writes the shares of the result itself.
        """
        groups: dict[relax.Var, list[_Branch]] = defaultdict(list)
        for step in self.steps:
            if is_op(step.value, "relax.matmul") and step.var not in self.known:
                data, weight = step.value.args
                if weight in self.known and isinstance(data, relax.Var):
                    groups[data].append(self._branch(step))
        return [group for group in groups.values() if self._joins(group)]

    def _joins(self, group: list[_Branch]) -> bool:
        shape = static_shape(group[0].multiply.value.args[1])
        local = all(isinstance(branch.result, relax.DataflowVar) for branch in group)
        alike = len({branch.alike for branch in group}) == 1
        return local and alike and 1 < len(group) <= MOST and len(shape) == 2 and shape[1] % self.machine.panel == 0

    def _branch(self, step: relax.VarBinding) -> _Branch:
        users = self.users[step.var]
        if len(users) == 1 and is_op(users[0].value, "relax.add"):
            for addend in users[0].value.args:
                if addend in self.known and static_shape(addend) == static_shape(step.var)[-1:]:
                    return _Branch(step, users[0].var, addend)
        return _Branch(step, step.var, None)

    def _joined(self, group: list[_Branch]) -> list[relax.VarBinding]:
        """Return the bindings of one multiply, and of the results of ``group`` as its shares."""
        steps: list[relax.VarBinding] = []

        def emit(value: relax.Expr) -> relax.Var:
            value = self.builder.normalize(value)
            steps.append(relax.VarBinding(relax.DataflowVar("joined", value.ty), value))
            return steps[-1].var

        call = group[0].multiply.value
        weights = [branch.multiply.value.args[1] for branch in group]
        joined = relax.Call(call.op, [call.args[0], emit(relax.op.concat(weights, 1))], call.attrs)
        result = emit(joined)
        if group[0].bias is not None:
            result = emit(relax.op.add(result, emit(relax.op.concat([branch.bias for branch in group], 0))))
        shares = emit(relax.op.split(result, len(group), -1))
        items = [relax.VarBinding(branch.result, relax.TupleGetItem(shares, i)) for i, branch in enumerate(group)]
        return [*steps, *items]


@tvm.transform.module_pass(opt_level=0, name="JoinMultiplies")
class JoinMultiplies:
    """Join the weights of multiplies of the same matrix and split the result."""

    def __init__(self, machine: Machine | Gpu) -> None:
        self.machine = machine

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        functions = {
            variable: _Joiner(function, self.machine).run() if isinstance(function, relax.Function) else function
            for variable, function in module.functions_items()
        }
        return tvm.IRModule(functions, attrs=module.attrs)
