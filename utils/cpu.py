"""What this CPU has: physical cores and vector instruction sets."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA = 158, 0x1023, 18  # x86-64 Linux
INSTRUCTION_SETS = re.compile(r"avx.*|fma|f16c|amx.*|neon|sve.*|dotprod|fullfp16|bf16|i8mm")
LLVM_NAMES = {"asimd": "neon", "asimddp": "dotprod", "asimdhp": "fullfp16"}  # by Linux's names


def _cpuinfo() -> list[dict[str, str]]:
    """Return one dict a logical CPU, empty where the system does not tell."""
    if not CPUINFO.is_file():
        return []
    blocks = CPUINFO.read_text(encoding="utf-8", errors="replace").strip().split("\n\n")
    lines = ([line.partition(":") for line in block.splitlines()] for block in blocks)
    return [{key.strip(): value.strip() for key, _, value in block} for block in lines]


def available_cores() -> int:
    """Return the logical CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def physical_cores() -> int:
    """Return the physical cores that this process may use: two hyper-threads count as one."""
    cores = {(cpu.get("physical id"), cpu.get("core id")) for cpu in _cpuinfo() if "core id" in cpu}
    return min(len(cores), available_cores()) if cores else available_cores()


def cpu_name() -> str:
    """Return the CPU's name as it gives it itself."""
    return next((cpu["model name"] for cpu in _cpuinfo() if "model name" in cpu), "unknown CPU")


def normalise(feature: str) -> str:
    """Spell a feature as both the kernel's ``avx512_vnni`` and LLVM's ``avx512vnni`` or ``amx-tile``."""
    return re.sub(r"[_.\-]", "", feature)


def instruction_sets(features: list[str]) -> list[str]:
    """Keep the vector instruction sets among ``features``, spelt in one way."""
    named = (LLVM_NAMES.get(feature, feature) for feature in features)
    return sorted({normalise(name) for name in named if INSTRUCTION_SETS.fullmatch(name)})


def permit_tiles() -> bool:
    """Ask the system to let this process use AMX's tile registers, and tell whether CPU and system agree.

    Source: Linux, Documentation/arch/x86/xstate.rst.
    """
    if {"amxtile", "amxbf16"} - set(host_instruction_sets() or []):
        return False
    return ctypes.CDLL(None).syscall(ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0


def host_instruction_sets() -> list[str] | None:
    """Return this CPU's vector instruction sets, or None where the system does not tell."""
    info = _cpuinfo()
    flags = info[0].get("flags", info[0].get("Features")) if info else None
    return None if flags is None else instruction_sets(flags.split())
