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

from compiler.codegen import linker
from compiler.gpu import native as gpu_native
from compiler.gpu.cuda_code import require_nvcc
from compiler.gpu.machine import Gpu
from compiler.native import Native, compile_component
from compiler.target import packing_host, resolve_target, why_not_here
from compiler.trace import Traced
from compiler.tuning.records import Records, usable
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


def _flops(entry: artifact.Component, native: Native) -> Shares:
    """Return the share of the FLOPs by origin."""
    flops = {name: float(kernel.flops * sum(kernel.calls.values())) for name, kernel in entry.kernels.items()}
    return _shares(flops, native.origins)


class Destination(ABC):
    """A machine that code is made for. ``label`` names it, ``target`` and ``features`` are the manifest's."""

    label: str
    target: dict[str, Any]
    features: list[str]
    why_not_here: str | None  # why code can't run on this machine, where it can't

    @abstractmethod
    def compile(self, component: Component, traced: Traced, on: dict[str, bool], debug_dir: Path | None) -> Native:
        """Compile a component that was traced."""

    @abstractmethod
    def check(
        self, component: Component, entry: artifact.Component, native: Native, unverified: artifact.Artifact
    ) -> tuple[artifact.Component, str]:
        """Check the parity of a component that lies in ``unverified``; return its entry with it, and what it was.

        Raises:
            UserError: it is below the floor.
        """

    def verified(
        self, component: Component, entry: artifact.Component, native: Native, unverified: artifact.Artifact
    ) -> artifact.Component:
        """Check the parity of a component, print it, and return its entry with it.

        Where its code can't run here, what PyTorch makes of its examples is kept for the first run where it can.

        Raises:
            UserError: it is below the floor.
        """
        start = time.perf_counter()
        if self.why_not_here is None:
            entry, found = self.check(component, entry, native, unverified)
            found = f"verified in {units.seconds(time.perf_counter() - start)}: {found}"
        else:
            entry = replace(entry, references=_write_references(component, unverified.folder))
            found = f"parity was not run, as {self.why_not_here}; the first run on such a machine verifies it"
            found += f"; FLOPs: {_percent(_flops(entry, native))}"
        say(f"{component.name}: {found}")
        return replace(entry, build_seconds=round(entry.build_seconds + time.perf_counter() - start, 1))


class ForCpu(Destination):
    """The CPU that --cpu or --target names, by default this one.

    Raises:
        UserError: see ``resolve_target``, ``linker`` and ``usable``.
    """

    def __init__(self, config: BuildConfig) -> None:
        cpu = resolve_target(config.target, config.precision, config.cpu)
        linker(cpu.triple)
        self.cpu = replace(cpu, machine=replace(cpu.machine, winograd_tile=config.winograd_tile))
        self.label = str(cpu.target.attrs.get("mcpu", "llvm"))
        known = {name: str(cpu.target.attrs[name]) for name in ("mcpu", "mtriple") if name in cpu.target.attrs}
        self.target = {"kind": "llvm", **known}
        self.features = cpu.features
        self.dtype = config.precision
        self.why_not_here = why_not_here(cpu)
        self.host = None if self.why_not_here is None else packing_host(cpu)
        self.records = Records()
        if self.why_not_here is None:
            self.records, used = usable(config.database_dir, self.cpu)
            if used:
                say(used)

    def compile(self, _component: Component, traced: Traced, on: dict[str, bool], debug_dir: Path | None) -> Native:
        return compile_component(traced, self.cpu, on, debug_dir, self.records, self.host)

    def check(
        self, component: Component, entry: artifact.Component, native: Native, unverified: artifact.Artifact
    ) -> tuple[artifact.Component, str]:
        found = verify(component, Engine(unverified, component.name, tvm.cpu()), self.dtype)
        shares = _shares(found.seconds, native.origins)
        psnr = {name: round(value, 2) for name, value in found.psnr.items()}
        return replace(entry, psnr=psnr, time_share=shares), f"{_decibels(found.psnr)}; time: {_percent(shares)}"


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
        is_here = present is not None and runs_on(arch, present) and is_usable()
        self.why_not_here = None if is_here else f"there is no {arch} here"

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

    def check(
        self, component: Component, entry: artifact.Component, native: Native, unverified: artifact.Artifact
    ) -> tuple[artifact.Component, str]:
        entry = replace(entry, references=_write_references(component, unverified.folder))
        engine = Engine(unverified, component.name, tvm.cuda())
        engine.description = entry
        entry = replace(entry, psnr=parity(unverified, engine))
        return entry, f"{_decibels(entry.psnr)}; FLOPs: {_percent(_flops(entry, native))}"


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
