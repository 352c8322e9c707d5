"""From a traced component to code for a GPU: kernels in CUDA, their callers and the packing of weights for the host."""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tvm
from tvm import relax
from tvm.relax import vm_build
from tvm.tirx.build import codegen_build

from compiler.codegen import MachineCode, NativeCode, bytecode
from compiler.gpu.cuda_code import compile_cuda, split
from compiler.gpu.machine import Gpu
from compiler.native import Native, described
from compiler.packing import lower_packing, packings, part
from compiler.pipeline import Step, gpu_back, gpu_front, run
from compiler.trace import Traced

PREFIX = "system_lib_prefix"  # attribute of a module: what the names of its functions in TensorIR are to begin with
HOST = tvm.target.Target("llvm")
Phases = dict[str, tvm.IRModule]


@dataclass(frozen=True)
class Lowered:
    """A component's functions after each phase, kernels bound to threads, and its packing in its final form."""

    phases: Phases
    packing: tvm.IRModule

    @property
    def functions(self) -> tvm.IRModule:
        """The functions in their final form."""
        return self.phases["lower"]


def gpu_target(gpu: Gpu) -> tvm.target.Target:
    """Return TVM's target, with a host."""
    return tvm.target.Target({"kind": "cuda", "arch": gpu.arch, "max_num_threads": 1024}, host="llvm")


def lower(traced: Traced, gpu: Gpu, on: dict[str, bool], used: set[str], debug_dir: Path | None = None) -> Lowered:
    """Run all passes on ``traced``; ``used`` receives the names of the optimisations that changed anything.

    With ``debug_dir`` the IR after each pass is written below it.
    """

    def below(name: str) -> Path | None:
        return None if debug_dir is None else debug_dir / name

    def phases(passes: list[Step], module: tvm.IRModule, name: str) -> Phases:
        return dict(run(passes, module, target, on, used, below(name)))

    target = gpu_target(gpu)
    dispatched = phases(gpu_front(gpu, on, used), traced.module, "1-graph")["dispatch"]
    names = {v.name_hint for v, f in dispatched.functions_items() if isinstance(f, relax.Function)}
    packing = packings(dispatched)
    for_gpu = phases(gpu_back(), part(dispatched, names - packing), "2-functions")
    for_host = part(dispatched, packing).with_attr(PREFIX, "host_")  # else kernels of both may have the same name
    packed = lower_packing(for_host, HOST, on, used, below("3-packing"))
    return Lowered({"dispatch": dispatched, **for_gpu}, packed)


def compile_component(traced: Traced, gpu: Gpu, on: dict[str, bool], debug_dir: Path | None) -> Native:
    """Run the pipeline on ``traced`` and generate machine code for ``gpu`` and its host.

    Raises:
        UserError: nvcc is missing.
    """
    start = time.perf_counter()
    used: set[str] = set()
    lowered = lower(traced, gpu, on, used, debug_dir)
    builder = relax.ExecBuilder()
    code = split(bytecode(builder, lowered.functions), gpu_target(gpu))
    packing = bytecode(builder, lowered.packing)
    folder = tempfile.TemporaryDirectory(prefix="tvmerge-")
    callers = Path(folder.name) / "callers.o"
    with ThreadPoolExecutor(1) as pool:
        machine_code = pool.submit(compile_cuda, code.source, gpu.arch, Path(folder.name), traced.name)
        codegen_build(code.host, HOST).write_to_file(str(callers))
        executable = vm_build._vmlink(builder, HOST, tir_mod=packing)
        device = MachineCode(machine_code.result(), code.launches)
    native = NativeCode(executable, [callers], folder)
    return described(traced, lowered.phases, native, device, used, time.perf_counter() - start)
