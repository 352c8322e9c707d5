"""The machine code of components: tensor cores multiply, every kernel has threads, and heavy ones spill nothing."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import re
import shutil
import subprocess
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import tvm
from tvm import relax

from compiler.codegen import bytecode
from compiler.costs import FLOPS
from compiler.gpu.cuda_code import compile_cuda, split
from compiler.gpu.machine import Gpu
from compiler.gpu.native import gpu_target, lower
from compiler.optimisations import enabled
from compiler.trace import trace
from models.checkpoint import load_checkpoint
from models.components import Component, components

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc compiles the kernels")
PRODUCTS = ("tensor_multiply", "tensor_attention", "matmul", "conv2d")  # kernels of ours; what TVM calls all others
TENSOR_CORES = re.compile(r"\b(HMMA|HGMMA)\.")
SHARE = 0.95
HEAVIEST = 10


@dataclass(frozen=True)
class Function:
    """A function in TensorIR: FLOPs of all its calls, and what became of it on the GPU."""

    name: str
    flops: int
    on_tensor_cores: bool
    spilled: int

    @property
    def is_product(self) -> bool:
        """Tell whether it is a convolution, a multiply or attention."""
        return any(name in self.name for name in PRODUCTS)


def instructions(code: Path) -> dict[str, str]:
    """Return the machine code of kernels as text; without cuobjdump, which requirements-dev.txt names, this fails."""
    (tool,) = (f for f in importlib.metadata.files("nvidia-cuda-cuobjdump") or [] if f.name == "cuobjdump")
    command = [str(tool.locate()), "-sass", str(code)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    _, *kernels = text.split("Function : ")
    return {name.strip(): body for name, _, body in (kernel.partition("\n") for kernel in kernels)}


def spills(log: Path) -> dict[str, int]:
    """Return the bytes of registers that each kernel stores in memory, as ptxas tells them."""
    found = re.findall(r"entry function '(\w+)'.*?(\d+) bytes spill stores", log.read_text(encoding="utf-8"), re.S)
    return {name: int(count) for name, count in found}


def calls(module: tvm.IRModule) -> Counter[str]:
    """Return how often the functions of ``module`` call each of its kernels, in all."""
    found: Counter[str] = Counter()

    def visit(expression: relax.Expr) -> None:
        if isinstance(expression, relax.Call) and isinstance(expression.op, tvm.ir.GlobalVar):
            found[expression.op.name_hint] += 1

    for function in module.functions.values():
        if isinstance(function, relax.Function):
            relax.analysis.post_order_visit(function, visit)
    return found


def compiled(component: Component, archs: Sequence[str], folder: Path) -> list[list[Function]]:
    """Lower a component for the first of ``archs``; return its functions as compiled for each, the heaviest first."""
    gpu = Gpu(archs[0], "float16")
    lowered = lower(trace(component), gpu, enabled(""), set()).functions
    counts = calls(lowered)
    kernels = bytecode(relax.ExecBuilder(), lowered)
    flops = {v.name_hint: int(f.attrs[FLOPS]) * counts[v.name_hint] for v, f in kernels.functions_items()}
    code = split(kernels, gpu_target(gpu))
    assert all(any(tag.startswith("threadIdx") for tag in launch.parameters) for launch in code.launches.values())
    with ThreadPoolExecutor() as threads:
        paths = threads.map(lambda arch: compile_cuda(code.source, arch, folder, arch), archs)
        return [functions_of(path, flops) for path in paths]


def functions_of(path: Path, flops: dict[str, int]) -> list[Function]:
    """Return the functions, whose FLOPs are given, that a file of machine code holds, the heaviest first."""
    texts, spilled = instructions(path), spills(path.with_suffix(".log"))
    assert set(texts) == set(spilled)
    kernels = defaultdict(list)  # of a function
    for kernel in texts:
        kernels[re.sub(r"_kernel(_\d+)?$", "", kernel)].append(kernel)
    assert set(kernels) == set(flops)
    found = []
    for name, parts in kernels.items():
        on_tensor_cores = any(TENSOR_CORES.search(texts[kernel]) is not None for kernel in parts)
        found.append(Function(name, flops[name], on_tensor_cores, sum(spilled[kernel] for kernel in parts)))
    return sorted(found, key=lambda function: function.flops, reverse=True)


def tensor_core_share(functions: list[Function]) -> float:
    """Return the share of the FLOPs of convolutions, multiplies and attention that tensor cores do."""
    products = [function for function in functions if function.is_product]
    return sum(f.flops for f in products if f.on_tensor_cores) / sum(f.flops for f in products)


def check(functions: list[Function]) -> None:
    """Check that tensor cores do the products, and that the heaviest functions spill nothing."""
    assert functions[0].flops > 0
    assert tensor_core_share(functions) >= SHARE
    assert [function.name for function in functions[:HEAVIEST] if function.spilled] == []


@pytest.mark.parametrize("name", ["text_encoder", "unet", "vae_decoder"])
def test_small_component(tmp_path, name):
    """The UNet's functions differ in the batch only, so one of them will do."""
    checkpoint = load_checkpoint("random:tiny")
    (component,) = (c for c in components(checkpoint, *checkpoint.size(None, None), 1) if c.name == name)
    component = dataclasses.replace(component, functions=component.functions[:1])
    for functions in compiled(component, ["sm_75", "sm_90"], tmp_path):
        check(functions)


@pytest.mark.full_size
@pytest.mark.parametrize("name", ["text_encoder", "unet", "vae_decoder"])
def test_full_size_component(tmp_path, name):
    (component,) = (c for c in components(load_checkpoint("random:sd15"), 512, 512, 1) if c.name == name)
    (functions,) = compiled(component, ["sm_90"], tmp_path)
    check(functions)
