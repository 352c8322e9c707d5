"""From a traced component to code for a GPU: kernels in CUDA, their callers and the packing of weights for the host."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import relax, tirx

from compiler.gpu.machine import Gpu
from compiler.graph import called_functions
from compiler.pipeline import gpu_back, gpu_front, packing_back, run
from compiler.trace import Traced

PACK = "pack_"


@dataclass(frozen=True)
class Lowered:
    """A component's functions, whose kernels are bound to threads, and its packing, both in their final form."""

    functions: tvm.IRModule
    packing: tvm.IRModule


def gpu_target(gpu: Gpu) -> tvm.target.Target:
    """Return TVM's target, with a host."""
    return tvm.target.Target({"kind": "cuda", "arch": gpu.arch, "max_num_threads": 1024}, host="llvm")


def _part(module: tvm.IRModule, names: set[str]) -> tvm.IRModule:
    """Return the Relax functions ``names`` and what they call."""
    functions = {v: f for v, f in module.functions_items() if isinstance(f, relax.Function) and v.name_hint in names}
    needed = {name for function in functions.values() for name in called_functions(function)}
    kernels = {v: f for v, f in module.functions_items() if isinstance(f, tirx.PrimFunc) and v.name_hint in needed}
    return tvm.IRModule({**functions, **kernels}, attrs=module.attrs)


def lower(traced: Traced, gpu: Gpu, on: dict[str, bool], used: set[str]) -> Lowered:
    """Run all passes on ``traced``; ``used`` receives the names of the optimisations that changed anything."""
    target = gpu_target(gpu)
    *_, (_, module) = run(gpu_front(gpu, on, used), traced.module, target, on, used)
    names = {v.name_hint for v, f in module.functions_items() if isinstance(f, relax.Function)}
    packing = {name for name in names if name.startswith(PACK)}
    *_, (_, functions) = run(gpu_back(), _part(module, names - packing), target, on, used)
    host = tvm.target.Target("llvm")
    *_, (_, packed) = run(packing_back(), _part(module, packing), host, on, used)
    return Lowered(functions, packed)
