"""A component of random:tiny for the GPU: lowered, or compiled and loaded as an artifact is, on an emulated one."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from gpu_emulator import stand_in_for_gpu

from compiler.alone import load
from compiler.gpu.cuda_code import DeviceCode, compile_cuda
from compiler.gpu.machine import Gpu
from compiler.gpu.native import Lowered, compile_component, lower
from compiler.optimisations import enabled
from compiler.package import write_component
from compiler.trace import Traced, trace
from models.checkpoint import load_checkpoint
from models.components import Component, components
from runtime.engine import Engine
from utils.config import TokenMerging

GPU = Gpu("sm_80", "float16")
ON = enabled("", "float32")


def traced(name: str, merging: TokenMerging | None = None) -> tuple[Component, Traced]:
    """Return a component with its first function only."""
    checkpoint = load_checkpoint("random:tiny")
    (component,) = (c for c in components(checkpoint, *checkpoint.size(None, None), 1, merging) if c.name == name)
    component = dataclasses.replace(component, functions=component.functions[:1])
    return component, trace(component)


def made(name: str, merging: TokenMerging | None = None) -> tuple[Component, Traced, Lowered]:
    """Return a component, traced and lowered."""
    component, module = traced(name, merging)
    return component, module, lower(module, GPU, ON, set())


def emulate(
    name: str, merging: TokenMerging | None, folder: Path, patch: pytest.MonkeyPatch
) -> tuple[Component, Engine]:
    """Return a component and its engine, whose kernels run on the host."""
    stand_in_for_gpu(patch)
    component, module = traced(name, merging)
    (folder / "params").mkdir()
    entry = write_component(module, compile_component(module, GPU, ON, None), folder, {})
    return component, load(entry, name, folder)


def spilled(code: DeviceCode, arch: str, folder: Path) -> list[int]:
    """Compile code and return the bytes that each of its kernels spills."""
    log = compile_cuda(code.source, arch, folder, arch).with_suffix(".log").read_text(encoding="utf-8")
    return [int(count) for count in re.findall(r"(\d+) bytes spill stores", log)]
