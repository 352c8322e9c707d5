"""From a traced component to a native library."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import tvm
from tvm import relax

from compiler.codegen import MachineCode, NativeCode, generate
from compiler.costs import kernels
from compiler.graph import split_params
from compiler.packing import lower_packing, packings, part
from compiler.passes.dispatch import Tilings
from compiler.passes.lift_context import CONTEXT
from compiler.pipeline import optimise
from compiler.target import Cpu
from compiler.trace import Traced
from runtime.artifact import FunctionType, Kernel, Packing, TensorType

ShapeAndType = tuple[list[int], str]


@dataclass(frozen=True)
class Native:
    """A compiled component.

    ``code`` is the library; for a GPU, ``device`` is the machine code of the kernels that it launches. ``packing`` says
    how each packed parameter is made and ``packed_types`` what it is, both in the order in which every function takes
    them; ``functions`` are the manifest's; ``kernels`` are all kernels by symbol, those that pack parameters too.
    ``used`` names the optimisations that changed anything. ``packer`` has the packing as code for this machine where
    ``code`` can't run here.
    """

    code: NativeCode
    device: MachineCode | None
    packing: dict[str, Packing]
    packed_types: dict[str, ShapeAndType]
    functions: dict[str, FunctionType]
    kernels: dict[str, Kernel]
    used: list[str]
    seconds: float
    packer: NativeCode | None = None

    @property
    def origins(self) -> dict[str, str]:
        """What each kernel is, by symbol: a kernel of ours by name, or "rule"."""
        return {symbol: kernel.origin for symbol, kernel in self.kernels.items()}


def _tensor(kind: relax.TensorType) -> ShapeAndType:
    return [int(extent) for extent in kind.shape], str(kind.dtype)


def _workspace(function: relax.Function) -> int:
    """Return the bytes of all storages of a lowered function; tensors that live one after the other share one."""
    sizes: list[int] = []

    def visit(expression: relax.Expr) -> None:
        if isinstance(expression, relax.Call) and expression.op == tvm.ir.Op.get("relax.vm.alloc_storage"):
            sizes.append(int(expression.args[0].values[0]))

    relax.analysis.post_order_visit(function, visit)
    return sum(sizes)


def _function_type(function: relax.Function, context: str | None) -> FunctionType:
    inputs, _ = split_params(function)
    result = function.ret_ty
    if isinstance(result, relax.TupleType):
        outputs = {f"output.{index}": field for index, field in enumerate(result.fields)}
    else:
        outputs = {"output": result}
    return FunctionType(
        [TensorType(variable.name, *_tensor(variable.ty)) for variable in inputs],
        [TensorType(name, *_tensor(kind)) for name, kind in outputs.items()],
        0,
        context,
    )


def _functions(traced: Traced, module: tvm.IRModule) -> dict[str, FunctionType]:
    """Return the traced functions with the inputs that they were traced with, and the contexts that they have now."""
    found = {}
    for variable, function in traced.module.functions_items():
        context = module[variable].attrs.get(CONTEXT)
        found[variable.name_hint] = _function_type(function, None if context is None else str(context))
        if context is not None:
            found[str(context)] = _function_type(module[context], None)
    return found


def described(
    traced: Traced,
    phases: Mapping[str, tvm.IRModule],
    code: NativeCode,
    device: MachineCode | None,
    used: set[str],
    seconds: float,
) -> Native:
    """Return a component and what its modules, as they were after each of ``phases``, tell of it."""
    dispatched = phases["dispatch"]
    packing = {name: Packing(**entry) for name, entry in json.loads(str(dispatched.attrs["packing"])).items()}
    functions = _functions(traced, dispatched)
    _, parameters = split_params(dispatched[next(iter(functions))])
    packed_types = {name: _tensor(var.ty) for name, var in zip(packing, parameters, strict=True)}
    called = kernels(phases["rest"], functions)
    lowered = phases["lower"]
    functions = {name: replace(kind, workspace=_workspace(lowered[name])) for name, kind in functions.items()}
    return Native(code, device, packing, packed_types, functions, called, sorted(used), seconds)


def compile_component(
    traced: Traced,
    cpu: Cpu,
    on: dict[str, bool],
    debug_dir: Path | None,
    tilings: Tilings | None = None,
    host: tvm.target.Target | None = None,
) -> Native:
    """Run the pipeline on ``traced`` and generate native code for ``cpu``; ``tilings``: see ``Dispatch``.

    ``host`` is this machine where it can't run that code: the packing is compiled for it too.
    """
    start = time.perf_counter()
    used: set[str] = set()
    phases = dict(optimise(traced.module, cpu, on, debug_dir, used, tilings))
    code = generate(traced.name, phases["lower"], cpu.target)
    packer = None
    if host is not None:
        packing = part(phases["dispatch"], packings(phases["dispatch"]))
        packer = generate(f"{traced.name}: packing", lower_packing(packing, host, on, set()), host)
    return replace(described(traced, phases, code, None, used, time.perf_counter() - start), packer=packer)
