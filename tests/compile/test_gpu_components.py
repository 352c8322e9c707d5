"""Whole components for the GPU, every kernel and its caller emulated on the host, against PyTorch in float32."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import pytest
import torch
import tvm
from gpu_emulator import emulated, host_module
from tvm import relax, tirx
from tvm.relax import vm_build

from compiler.gpu.cuda_code import DeviceCode, compile_cuda, split
from compiler.gpu.machine import Gpu
from compiler.gpu.native import Lowered, gpu_target, lower
from compiler.kernels.plan import KERNEL
from compiler.optimisations import enabled
from compiler.trace import Traced, trace
from models.checkpoint import load_checkpoint
from models.components import Component, components
from runtime.quality import FLOOR, psnr

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="CUDA's headers are needed")
GPU = Gpu("sm_80", "float16")
ON = enabled("", "float32")


def made(name: str) -> tuple[Component, Traced, Lowered]:
    """Return a component of random:tiny with its first function only."""
    checkpoint = load_checkpoint("random:tiny")
    (component,) = (c for c in components(checkpoint, *checkpoint.size(None, None), 1) if c.name == name)
    component = dataclasses.replace(component, functions=component.functions[:1])
    traced = trace(component)
    return component, traced, lower(traced, GPU, ON, set())


def kernels(module: tvm.IRModule) -> tvm.IRModule:
    return tvm.IRModule({v: f for v, f in module.functions_items() if isinstance(f, tirx.PrimFunc)})


def machine(builder: relax.ExecBuilder, library: tvm.runtime.Module, path, device: tvm.runtime.Module):
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


@pytest.mark.parametrize("name", ["text_encoder", "unet"])
def test_component_matches_pytorch(tmp_path, name):
    component, traced, lowered = made(name)
    builder = relax.ExecBuilder()
    code: DeviceCode = split(kernels(vm_build._vmcodegen(builder, lowered.functions, "bytecode")), gpu_target(GPU))
    vm = machine(builder, host_module(code), tmp_path / f"{name}.so", emulated(code, tmp_path))
    parameters = packed(traced, lowered)
    (function,) = component.functions
    inputs = {key: tvm.runtime.tensor(value.numpy()) for key, value in function.inputs}
    context = lowered.functions[function.name].attrs.get("context")
    cached = []
    if context is not None:
        cached = list(vm[str(context)](*(inputs.pop(key) for key in function.fixed), *parameters))
    result = vm[function.name](*inputs.values(), *cached, *parameters).numpy()
    with torch.no_grad():
        reference = component.module(*(value for _, value in function.inputs)).numpy()
    assert result.dtype == "float32"
    assert psnr(reference, result) >= FLOOR["float16"]


def test_vae_compiles_for_old_and_new_gpus_and_every_kernel_is_bound_to_threads(tmp_path):
    _, _, lowered = made("vae_decoder")
    found = [str((f.attrs or {}).get(KERNEL, "rule")) for f in kernels(lowered.functions).functions.values()]
    assert {"tensor_multiply", "tensor_attention", "group_norm"} < set(found)
    left = vm_build._vmcodegen(relax.ExecBuilder(), lowered.functions, "bytecode")
    code = split(kernels(left), gpu_target(GPU))
    assert all(any(tag.startswith("threadIdx") for tag in launch.parameters) for launch in code.launches.values())
    for arch in ("sm_75", "sm_90"):
        assert compile_cuda(code.source, arch, tmp_path, arch).read_bytes()[:4] == b"\x7fELF"
        spilled = re.findall(r"(\d+) bytes spill stores", (tmp_path / f"{arch}.log").read_text())
        assert len(spilled) == len(code.launches)
        assert set(spilled) == {"0"}
