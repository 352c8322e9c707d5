"""What an artifact for a GPU needs of the machine: a GPU of its architecture, memory, and its kernels loaded there."""

from __future__ import annotations

import json
from pathlib import Path

import tvm

from runtime.artifact import DeviceCode, Manifest
from utils.errors import UserError
from utils.gpu import nearest_arch, present_arch, runs_on

OUT_OF_MEMORY = ("out of memory", "OUT_OF_MEMORY", "cudaErrorMemoryAllocation")
CREATE, METADATA = "ffi.Module.create.cuda", "runtime.LoadMetaDataFromJSON"


def is_usable() -> bool:
    """Tell whether TVM's part for CUDA was loaded: it needs the driver, and the runtime library of CUDA 13."""
    return tvm.get_global_func(CREATE, allow_missing=True) is not None


def require_gpu(manifest: Manifest) -> tvm.runtime.Device:
    """Return the first GPU.

    Raises:
        UserError: there is none, TVM can't use it, or the artifact's machine code is for another architecture.
    """
    device, built = tvm.cuda(), str(manifest.target.get("arch"))
    if present_arch() is None:
        raise UserError("the artifact is for cuda, and no GPU was found here; build one with --target llvm")
    if not is_usable() or not device.exist:
        raise UserError(
            "TVM can't use the GPU: it needs libcudart.so.13; install CUDA 13, or name its folder by LD_LIBRARY_PATH"
        )
    present = "sm_" + str(device.compute_version).replace(".", "")
    if not runs_on(built, present):
        nearest = nearest_arch(present)
        advice = "for which this version has no kernels" if nearest is None else f"build with --cuda-arch {nearest}"
        raise UserError(f"the artifact is for {built}, the GPU here ({device.device_name}) is {present}; {advice}")
    return device


def add_kernels(library: tvm.runtime.Module, device: DeviceCode, code: Path) -> None:
    """Load machine code, from which a component's library then takes its kernels; call it before the first use."""
    functions = {
        symbol: {"name": symbol, "arg_types": launch.arguments, "launch_param_tags": launch.parameters}
        for symbol, launch in device.launches.items()
    }
    metadata = json.dumps({"tvm_version": tvm.__version__, "func_info": functions})
    information = tvm.get_global_func(METADATA)(metadata)
    kernels = tvm.get_global_func(CREATE)(code.read_bytes(), "cubin", information, {})
    library.imports[0].import_module(kernels)


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether an error of the library's is the GPU's memory having run out."""
    return any(words in str(error) for words in OUT_OF_MEMORY)
