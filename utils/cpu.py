"""What this CPU has: cores that this process may use, caches, instruction sets, and a name."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from utils.features import instruction_sets, normalise, without_hidden
from utils.groups import core_quota

CPUINFO, CPUS, BOARD = Path("/proc/cpuinfo"), Path("/sys/devices/system/cpu"), Path("/proc/device-tree/model")
ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA = 158, 0x1023, 18  # x86-64 Linux
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
ARM_PARTS = {  # by "CPU implementer" and "CPU part"
    ("0x41", "0xd03"): "Arm Cortex-A53",
    ("0x41", "0xd08"): "Arm Cortex-A72",
    ("0x41", "0xd0b"): "Arm Cortex-A76",
    ("0x41", "0xd0c"): "Arm Neoverse-N1",
    ("0x41", "0xd40"): "Arm Neoverse-V1",
    ("0x41", "0xd49"): "Arm Neoverse-N2",
    ("0x41", "0xd4f"): "Arm Neoverse-V2",
    ("0x61", "0x022"): "Apple M1",
    ("0x61", "0x023"): "Apple M1",
    ("0x61", "0x032"): "Apple M2",
    ("0x61", "0x033"): "Apple M2",
    ("0xc0", "0xac3"): "Ampere-1",
}
ARM_MAKERS = {"0x41": "Arm", "0x51": "Qualcomm", "0x61": "Apple", "0xc0": "Ampere"}


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


def _mask() -> set[int] | None:
    """Return the numbers of the logical CPUs that this process may run on, or None where the system does not tell."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


def _within_quota(cores: int) -> int:
    """Return how many of ``cores`` a container's share of their time keeps busy, at least 1.

    A share of 1.5 cores counts as 2 and one of 1.4 as 1: of less than a half, threads that wait for each other leave
    nothing.
    """
    quota = core_quota()
    return cores if quota is None else max(1, min(cores, int(quota + 0.5)))


def available_cores() -> int:
    """Return the logical CPUs that this process may use: its mask, and its control groups' share of their time."""
    mask = _mask()
    return _within_quota(len(mask) if mask else os.cpu_count() or 1)


def physical_cores() -> int:
    """Return the physical cores that this process may use: two hyper-threads count as one."""
    mask = _mask()
    numbered = ((cpu, cpu.get("processor", "")) for cpu in _cpuinfo() if "core id" in cpu)
    allowed = [cpu for cpu, number in numbered if mask is None or not number.isdigit() or int(number) in mask]
    cores = {(cpu.get("physical id"), cpu["core id"]) for cpu in allowed}
    return min(_within_quota(len(cores)), available_cores()) if cores else available_cores()


def cpu_name() -> str:
    """Return the CPU's name as it gives it itself; on an Arm, which gives none, those of core and board."""
    info = _cpuinfo()
    if (name := next((cpu["model name"] for cpu in info if cpu.get("model name")), None)) is not None:
        return name
    parts = [(cpu["CPU implementer"], cpu["CPU part"]) for cpu in info if {"CPU implementer", "CPU part"} <= set(cpu)]
    names = list(dict.fromkeys(_arm_name(*part) for part in parts))
    try:
        board = BOARD.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    except OSError:
        board = ""
    if names:
        return " and ".join(names) + (f" ({board})" if board else "")
    return board or _name_elsewhere()


def _arm_name(maker: str, part: str) -> str:
    return ARM_PARTS.get((maker, part), f"{ARM_MAKERS.get(maker, 'Arm, maker ' + maker)} core, part {part}")


def _name_elsewhere() -> str:
    """Return the name that macOS or Windows gives the CPU."""
    if platform.system() == "Darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10)  # noqa: S603
        except (OSError, subprocess.SubprocessError):
            return "unknown CPU"
        return done.stdout.strip() or "unknown CPU"
    return platform.processor() or "unknown CPU"


def _own_features() -> set[str] | None:
    """Return what the system says that this CPU has, without what the user hides, or None where it does not tell.

    Raises:
        UserError: see ``utils.features.hidden``.
    """
    info = _cpuinfo()
    flags = info[0].get("flags", info[0].get("Features")) if info else None
    return None if flags is None else without_hidden(map(normalise, flags.split()))


def permit_tiles() -> bool:
    """Ask the system to let this process use AMX's tile registers, and tell whether CPU and system agree.

    Source: Linux, Documentation/arch/x86/xstate.rst.
    """
    return {"amxtile", "amxbf16"} <= (_own_features() or set()) and _ask_for_tiles()


def _ask_for_tiles() -> bool:
    return ctypes.CDLL(None).syscall(ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0


def host_instruction_sets() -> list[str] | None:
    """Return the instruction sets that code may use here, by normal name, or None where the system does not tell.

    AMX is among them only where the system permits it.

    Raises:
        UserError: see ``utils.features.hidden``.
    """
    features = _own_features()
    if features is None:
        return None
    allowed = permit_tiles()
    return instruction_sets(name for name in features if allowed or not name.startswith("amx"))


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
