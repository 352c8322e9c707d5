"""What can be tuned of a component: its kernels with their calls, and the plain TensorIR that names each."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

import tvm
from tvm import relax, tirx

from compiler.kernels.plan import Plan
from compiler.kernels.tunable import TUNABLE, encode
from compiler.pipeline import optimise
from compiler.target import Cpu
from compiler.trace import trace
from compiler.tuning.records import ARGUMENTS, NAME, VERSION, Chosen, Key
from models.components import Component

STEPS = 20  # of a picture: how often it calls a function some of whose inputs stay the same over it


@dataclass(frozen=True)
class Task:
    """A kernel: its name and arguments, the workload that stands for it, and how often a picture calls it."""

    key: Key
    workload: tvm.IRModule
    calls: float


def workload(call: relax.Call, key: Key) -> tvm.IRModule:
    """Return the operator of ``call`` as plain TensorIR that names the kernel and its arguments in its attributes."""
    builder = relax.BlockBuilder()
    variables = [relax.Var(f"x{index}", argument.ty) for index, argument in enumerate(call.args)]
    with builder.function("main", variables):
        with builder.dataflow():
            result = builder.emit_output(relax.Call(call.op, variables, call.attrs))
        builder.emit_func_output(result)
    legal = relax.transform.LegalizeOps()(builder.get())
    (function,) = (f for _, f in legal.functions_items() if isinstance(f, tirx.PrimFunc))
    named = {"global_symbol": "main", NAME: key[0], ARGUMENTS: key[1], VERSION: TUNABLE[key[0]].version}
    return tvm.IRModule({"main": function.with_attrs(named)})


class Collector:
    """Chooses nothing, and notes every kernel that can be tuned, and how often a function calls it."""

    def __init__(self) -> None:
        self.seen: dict[Key, relax.Call] = {}
        self.calls: dict[str, Counter[Key]] = defaultdict(Counter)

    def choose(self, function: str, plan: Plan, call: relax.Call) -> Chosen:
        """Note a call of a kernel."""
        if plan.name in TUNABLE:
            key = (plan.name, encode(plan.arguments))
            self.seen.setdefault(key, call)
            self.calls[function][key] += 1
        return {}


def tasks(component: Component, cpu: Cpu, on: dict[str, bool]) -> list[Task]:
    """Return what can be tuned of the component's first function, by which a picture is made."""
    collector = Collector()
    phases = optimise(trace(component).module, cpu, {**on, "tuned": True}, None, set(), collector)
    next(phase for phase, _ in phases if phase == "dispatch")
    first = component.functions[0]
    steps = STEPS if first.fixed else 1
    return [
        Task(key, workload(collector.seen[key], key), calls * steps)
        for key, calls in collector.calls[first.name].items()
    ]
