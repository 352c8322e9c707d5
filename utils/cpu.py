"""What this CPU has: physical cores, caches and vector instruction sets."""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import dataclass
from pathlib import Path

CPUINFO, CPUS = Path("/proc/cpuinfo"), Path("/sys/devices/system/cpu")
ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA = 158, 0x1023, 18  # x86-64 Linux
INSTRUCTION_SETS = re.compile(r"avx.*|fma|f16c|amx.*|neon|sve.*|dotprod|fullfp16|bf16|i8mm")
LLVM_NAMES = {"asimd": "neon", "asimddp": "dotprod", "asimdhp": "fullfp16"}  # by Linux's names
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True)
class Caches:
    """Bytes of a core's first-level data cache, of its part of the second level, and of the third, which cores share.

    The values here are what is taken where the system does not tell; ``l3`` is 0 where there is none.
    """

    l1: int = 32 << 10
    l2: int = 512 << 10
    l3: int = 8 << 20


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


def _size(text: str) -> int:
    """Return the bytes of a size as Linux writes it, as in ``48K``."""
    found = re.fullmatch(r"(\d+)([KMG]?)", text.strip())
    return int(found[1]) * UNITS[found[2]] if found else 0


def _count(path: Path) -> int:
    """Return how many logical CPUs a list of Linux names, as in ``0-3,8``; 1 where there is none."""
    try:
        spans = [part.split("-") for part in path.read_text().strip().split(",")]
        return max(1, sum(int(span[-1]) - int(span[0]) + 1 for span in spans))
    except (OSError, ValueError):
        return 1


def cache_sizes() -> Caches:
    """Return the caches of the first core."""
    found: dict[int, int] = {}
    siblings = _count(CPUS / "cpu0" / "topology" / "thread_siblings_list")
    for folder in sorted((CPUS / "cpu0" / "cache").glob("index*")):
        try:
            level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        if kind != "Instruction" and level.isdigit() and (total := _size(size)):
            sharers = max(1, _count(folder / "shared_cpu_list") // siblings)
            found[int(level)] = total if int(level) == 3 else total // sharers
    if 1 not in found:
        return Caches()
    return Caches(found[1], found.get(2, Caches.l2), found.get(3, 0))
