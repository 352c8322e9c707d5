"""Whole components for the GPU, every kernel and its caller emulated on the host, against PyTorch in float32."""

from __future__ import annotations

import shutil

import pytest
from gpu_component import GPU, emulate, kernels, made, spilled
from tvm import relax
from tvm.relax import vm_build

from compiler.gpu.cuda_code import split
from compiler.gpu.native import gpu_target
from compiler.kernels.plan import KERNEL
from compiler.verify import FLOOR
from runtime.quality import psnr

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="CUDA's headers are needed")


@pytest.mark.parametrize("name", ["text_encoder", "unet"])
def test_component_matches_pytorch(tmp_path, name):
    reference, result = emulate(*made(name), tmp_path)
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
        assert spilled(code, arch, tmp_path) == [0] * len(code.launches)
