"""Functions in TensorIR, loops bound to threads, as CUDA source and then machine code; their callers as host code."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import tvm
from tvm import tirx
from tvm.tirx.build import codegen_build, split_host_device_mods

from runtime.artifact import Launch
from utils.errors import UserError

INTRINSICS = Path(__file__).with_name("intrinsics.cuh")
SOURCE = "cuda"
LEFT_TO_NVCC = {"tirx.disable_cse_tir": True}  # TVM's own binds values that its later passes refuse


@dataclass(frozen=True)
class DeviceCode:
    """Functions split in two: what the host calls, lowered for it, and CUDA source with its kernels by name.

    The source needs intrinsics.cuh before it.
    """

    host: tvm.IRModule
    source: str
    launches: dict[str, Launch]


def split(module: tvm.IRModule, target: tvm.target.Target) -> DeviceCode:
    """Lower ``module`` for the GPU ``target``, whose host it names."""
    pipeline, finish_host, finish_device = tirx.get_default_tir_pipeline(target)
    with tvm.transform.PassContext(config=LEFT_TO_NVCC):
        host, devices = split_host_device_mods(pipeline(tirx.transform.BindTarget(target)(module)))
    host = finish_host()(host)
    ((device_target, device),) = devices.items()
    device = finish_device()(device)
    launches = {
        str(function.attrs["global_symbol"]): Launch(
            [_argument(parameter) for parameter in function.params],
            [str(name) for name in function.attrs["tirx.kernel_launch_params"]],
        )
        for _, function in device.functions_items()
    }
    generated = codegen_build(device, device_target).inspect_source(SOURCE)
    return DeviceCode(host, generated, launches)


def _argument(parameter: tirx.Var) -> str:
    kind = parameter.ty
    return "handle" if isinstance(kind, tvm.ir.PointerType) else str(kind.dtype)


def require_nvcc() -> None:
    """Refuse a machine without CUDA's compiler.

    Raises:
        UserError: saying where to have it from.
    """
    if shutil.which("nvcc") is None:
        raise UserError(
            "--target cuda: nvcc was not found; install the CUDA toolkit and put it on PATH, or use --target llvm"
        )


def compile_cuda(source: str, arch: str, folder: Path, name: str) -> Path:
    """Compile CUDA source for ``arch`` and return the file of machine code; what ptxas tells lies beside it.

    Raises:
        UserError: nvcc refuses the source.
    """
    path, code = folder / f"{name}.cu", folder / f"{name}.cubin"
    path.write_text(INTRINSICS.read_text(encoding="utf-8") + source, encoding="utf-8")
    command = ["nvcc", f"-arch={arch}", "-cubin", "-O3", "-std=c++17", "-Xptxas=-v", str(path), "-o", str(code)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - a list of our own
    if result.returncode:
        raise UserError(f"--target cuda: nvcc failed: {result.stderr.strip().splitlines()[-1]}")
    code.with_suffix(".log").write_text(result.stderr, encoding="utf-8")
    return code
