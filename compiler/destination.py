"""Where code is for, a CPU or a GPU: how it is compiled for it, and how and when its parity is known."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from compiler.gpu import native as gpu_native
from compiler.gpu.cuda_code import require_nvcc
from compiler.gpu.machine import Gpu
from compiler.native import Native, compile_component
from compiler.target import require_runs_here, resolve_target
from compiler.trace import Traced
from compiler.tuning.records import usable
from compiler.verify import reference, verify
from models.components import Component
from runtime import artifact
from runtime.engine import Engine
from runtime.gpu import is_usable
from runtime.parameters import write_parameters
from runtime.verification import OUTPUT, parity
from utils import units
from utils.config import BuildConfig
from utils.gpu import has_bfloat16, present_arch, runs_on
from utils.progress import say

Shares = dict[str, float]


def _shares(amounts: Mapping[str, float], origins: Mapping[str, str]) -> Shares:
    """Return the share by origin; what is no kernel (allocation, views) counts as "other"."""
    shares: dict[str, float] = defaultdict(float)
    for symbol, value in amounts.items():
        shares[origins.get(symbol, "other")] += value
    total = sum(shares.values()) or 1.0
    return {origin: round(value / total, 4) for origin, value in sorted(shares.items(), key=lambda item: -item[1])}


def _percent(shares: Shares) -> str:
    return ", ".join(f"{origin} {share:.1%}" for origin, share in shares.items())


def _decibels(psnr: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f} dB" for name, value in psnr.items())


class Destination(ABC):
    """A machine that code is made for. ``label`` names it, ``target`` and ``features`` are the manifest's."""

    label: str
    target: dict[str, Any]
    features: list[str]

    @abstractmethod
    def compile(self, component: Component, traced: Traced, on: dict[str, bool], debug_dir: Path | None) -> Native:
        """Compile a component that was traced."""

    @abstractmethod
    def verified(
        self, component: Component, entry: artifact.Component, native: Native, unverified: artifact.Artifact
    ) -> artifact.Component:
        """Check the parity of a component that lies in ``unverified``, print it, and return its entry with it.

        Raises:
            UserError: it is below the floor.
        """


class ForCpu(Destination):
    """The CPU that --target describes, by default this one.

    Raises:
        UserError: see ``resolve_target`` and ``require_runs_here``.
    """

    def __init__(self, config: BuildConfig) -> None:
        cpu = resolve_target(config.target, config.precision)
        require_runs_here(cpu)
        self.cpu = replace(cpu, machine=replace(cpu.machine, winograd_tile=config.winograd_tile))
        self.label = str(cpu.target.attrs.get("mcpu", "llvm"))
        self.target = {"mcpu": self.label, "kind": "llvm"} if "mcpu" in cpu.target.attrs else {"kind": "llvm"}
        self.features = cpu.features
        self.dtype = config.precision
        self.records, used = usable(config.database_dir, self.cpu)
        say(used)

    def compile(self, _component: Component, traced: Traced, on: dict[str, bool], debug_dir: Path | None) -> Native:
        return compile_component(traced, self.cpu, on, debug_dir, self.records)

    def verified(
        self, component: Component, entry: artifact.Component, native: Native, unverified: artifact.Artifact
    ) -> artifact.Component:
        start = time.perf_counter()
        found = verify(component, Engine(unverified, component.name, tvm.cpu()), self.dtype)
        seconds = time.perf_counter() - start
        shares = _shares(found.seconds, native.origins)
        say(
            f"{component.name}: verified in {units.seconds(seconds)}: {_decibels(found.psnr)}; time: {_percent(shares)}"
        )
        psnr = {name: round(value, 2) for name, value in found.psnr.items()}
        return replace(entry, psnr=psnr, time_share=shares, build_seconds=round(entry.build_seconds + seconds, 1))


class ForGpu(Destination):
    """A GPU of the architecture that --cuda-arch names, by default this machine's.

    Where no such GPU is present, parity is verified at the first run on one, with the references that are kept.

    Raises:
        UserError: nvcc is missing.
    """

    def __init__(self, config: BuildConfig, arch: str) -> None:
        require_nvcc()
        self.gpu = Gpu(arch, config.precision)
        self.label = arch
        self.target = {"kind": "cuda", "arch": arch}
        self.features: list[str] = []
        present = present_arch()
        self.is_here = present is not None and runs_on(arch, present) and is_usable()

    def compile(self, component: Component, traced: Traced, on: dict[str, bool], debug_dir: Path | None) -> Native:
        gpu = self._in_range(component)
        if gpu != self.gpu:
            say(f"{component.name}: in {gpu.dtype}, as its configuration says that it overflows {self.gpu.dtype}")
        return gpu_native.compile_component(traced, gpu, on, debug_dir)

    def _in_range(self, component: Component) -> Gpu:
        """Return the GPU with a type that holds all that ``component`` computes, bfloat16 where it has that."""
        if not component.overflows or self.gpu.dtype != "float16":
            return self.gpu
        return replace(self.gpu, dtype="bfloat16" if has_bfloat16(self.gpu.arch) else "float32")

    def verified(
        self, component: Component, entry: artifact.Component, native: Native, unverified: artifact.Artifact
    ) -> artifact.Component:
        start = time.perf_counter()
        entry = replace(entry, references=_write_references(component, unverified.folder))
        flops = {name: float(kernel.flops * sum(kernel.calls.values())) for name, kernel in entry.kernels.items()}
        if self.is_here:
            engine = Engine(unverified, component.name, tvm.cuda())
            engine.description = entry
            entry = replace(entry, psnr=parity(unverified, engine))
        seconds = time.perf_counter() - start
        known = f"verified in {units.seconds(seconds)}: {_decibels(entry.psnr)}"
        unknown = f"parity was not run, as there is no {self.label} here; the first run on one verifies it"
        say(
            f"{component.name}: {known if self.is_here else unknown}; FLOPs: {_percent(_shares(flops, native.origins))}"
        )
        return replace(entry, build_seconds=round(entry.build_seconds + seconds, 1))


def _write_references(component: Component, folder: Path) -> artifact.File:
    """Write each function's example inputs, and what PyTorch makes of them, into ``folder``."""
    found: dict[str, np.ndarray] = {}
    for function in component.functions:
        found |= {f"{function.name}.{name}": value.numpy() for name, value in function.inputs}
        found[f"{function.name}.{OUTPUT}"] = reference(component, function)
    path = folder / "references" / f"{component.name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    types = {name: (list(value.shape), str(value.dtype)) for name, value in found.items()}
    return artifact.describe(path, folder, write_parameters(path, types, found.items()))


def destination(config: BuildConfig) -> Destination:
    """Return where ``config`` asks for code for.

    Raises:
        UserError: see ``ForCpu``.
    """
    arch = config.gpu
    return ForCpu(config) if arch is None else ForGpu(config, arch)
