"""From a traced component to a native library."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import tvm
from tvm import relax, tirx

from compiler.codegen import NativeCode, generate
from compiler.kernels.registry import KERNEL
from compiler.passes.schedule import ORIGIN
from compiler.pipeline import optimise
from compiler.target import Cpu
from compiler.trace import Traced
from runtime.artifact import Packing, TensorType

ShapeAndType = tuple[list[int], str]


@dataclass(frozen=True)
class Native:
    """A compiled component.

    ``packing`` says how each packed parameter is made and ``packed_types`` what it is, both in the order in which every
    function takes them; ``origins`` tells for each kernel by symbol what it is: a kernel of ours by name, or "rule".
    """

    code: NativeCode
    packing: dict[str, Packing]
    packed_types: dict[str, ShapeAndType]
    outputs: dict[str, TensorType]
    origins: dict[str, str]
    seconds: float


def _tensor(variable: relax.Var) -> ShapeAndType:
    return [int(extent) for extent in variable.ty.shape], str(variable.ty.dtype)


def _origins(module: tvm.IRModule) -> dict[str, str]:
    found = {}
    for variable, function in module.functions_items():
        if isinstance(function, tirx.PrimFunc):
            attrs = function.attrs or {}
            found[variable.name_hint] = str(attrs[KERNEL]) if KERNEL in attrs else str(attrs.get(ORIGIN, "bare"))
    return found


def compile_component(traced: Traced, cpu: Cpu, on: dict[str, bool], debug_dir: Path | None) -> Native:
    """Run the pipeline on ``traced`` and generate native code for ``cpu``."""
    start = time.perf_counter()
    outputs = {}
    for name in traced.inputs:
        shape, dtype = _tensor(traced.module[name].body.body)
        outputs[name] = TensorType("output", shape, dtype)
    packing: dict[str, Packing] = {}
    packed_types: dict[str, ShapeAndType] = {}
    origins: dict[str, str] = {}
    module = traced.module
    for phase, compiled in optimise(traced.module, cpu, on, debug_dir):
        module = compiled
        if phase == "dispatch":
            packing = {name: Packing(**entry) for name, entry in json.loads(str(module.attrs["packing"])).items()}
            first = next(iter(traced.inputs))
            parameters = module[first].params[len(traced.inputs[first]) :]
            packed_types = {name: _tensor(var) for name, var in zip(packing, parameters, strict=True)}
        if phase == "rest":
            origins = _origins(module)
    code = generate(traced.name, module, cpu.target)
    return Native(code, packing, packed_types, outputs, origins, time.perf_counter() - start)
