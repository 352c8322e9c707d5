"""A component of a random model, compiled for the GPU and run on an emulated one."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import torch
import tvm
from gpu_emulator import emulated, host_module
from tvm import relax, tirx
from tvm.relax import vm_build

from compiler.gpu.cuda_code import DeviceCode, compile_cuda, split
from compiler.gpu.machine import Gpu
from compiler.gpu.native import Lowered, gpu_target, lower
from compiler.optimisations import enabled
from compiler.trace import Traced, trace
from models.checkpoint import load_checkpoint
from models.components import Component, components
from utils.config import TokenMerging

GPU = Gpu("sm_80", "float16")
ON = enabled("", "float32")


def made(name: str, merging: TokenMerging | None = None) -> tuple[Component, Traced, Lowered]:
    """Return a component of random:tiny with its first function only."""
    checkpoint = load_checkpoint("random:tiny")
    (component,) = (c for c in components(checkpoint, *checkpoint.size(None, None), 1, merging) if c.name == name)
    component = dataclasses.replace(component, functions=component.functions[:1])
    traced = trace(component)
    return component, traced, lower(traced, GPU, ON, set())


def kernels(module: tvm.IRModule) -> tvm.IRModule:
    return tvm.IRModule({v: f for v, f in module.functions_items() if isinstance(f, tirx.PrimFunc)})


def machine(builder: relax.ExecBuilder, library: tvm.runtime.Module, path: Path, device: tvm.runtime.Module):
    """Return a virtual machine over an exported library, into which the device's code comes at load."""
    executable = vm_build._vmlink(builder, tvm.target.Target("llvm"), tir_mod=None, ext_libs=[library])
    executable.export_library(str(path))
    loaded = tvm.runtime.load_module(str(path))
    loaded.imports[0].import_module(device)
    return relax.VirtualMachine(loaded, tvm.cpu())


def packed(traced: Traced, lowered: Lowered) -> list[tvm.runtime.Tensor]:
    builder = relax.ExecBuilder()
    left = vm_build._vmcodegen(builder, lowered.packing, "bytecode")
    executable = vm_build._vmlink(builder, tvm.target.Target("llvm"), tir_mod=kernels(left))
    packer = relax.VirtualMachine(executable, tvm.cpu())
    found = []
    for entry in json.loads(str(lowered.functions.attrs["packing"])).values():
        sources = [tvm.runtime.tensor(traced.parameters[name]) for name in entry["sources"]]
        found.append(packer[entry["function"]](*sources) if entry["function"] else sources[0])
    return found


def emulate(component: Component, traced: Traced, lowered: Lowered, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return PyTorch's result in float32, and that of the emulated GPU."""
    builder = relax.ExecBuilder()
    code: DeviceCode = split(kernels(vm_build._vmcodegen(builder, lowered.functions, "bytecode")), gpu_target(GPU))
    vm = machine(builder, host_module(code), folder / f"{component.name}.so", emulated(code, folder))
    parameters = packed(traced, lowered)
    (function,) = component.functions
    inputs = {key: tvm.runtime.tensor(value.numpy()) for key, value in function.inputs}
    context = lowered.functions[function.name].attrs.get("context")
    cached = []
    if context is not None:
        cached = list(vm[str(context)](*(inputs.pop(key) for key in function.fixed), *parameters))
    result = vm[function.name](*inputs.values(), *cached, *parameters).numpy()
    with torch.no_grad():
        return component.module(*(value for _, value in function.inputs)).numpy(), result


def spilled(code: DeviceCode, arch: str, folder: Path) -> list[int]:
    """Compile ``code`` and return the bytes that each kernel spills for want of registers."""
    compiled = compile_cuda(code.source, arch, folder, arch)
    assert compiled.read_bytes()[:4] == b"\x7fELF"
    return [int(count) for count in re.findall(r"(\d+) bytes spill stores", compiled.with_suffix(".log").read_text())]
