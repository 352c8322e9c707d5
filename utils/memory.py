"""How much memory this process has used, and how much it may still use."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from utils.groups import groups, number

STATUS, MEMINFO = Path("/proc/self/status"), Path("/proc/meminfo")
FILES = {1: ("limit_in_bytes", "usage_in_bytes", "total_inactive_file"), 2: ("max", "current", "inactive_file")}


def _field(path: Path, name: str, unit: int = 1024) -> int | None:
    """Return the number behind ``name`` in a file of the system, in bytes, or None where it doesn't tell."""
    try:
        found = re.search(rf"^{name}:?\s+(\d+)", path.read_text(), re.M)
    except OSError:
        return None
    return None if found is None else int(found[1]) * unit


def peak_memory() -> int | None:
    """Return the largest resident size of this process so far, in bytes, or None where the system doesn't tell."""
    # getrusage also counts the process that started this one, as it was before exec: too much under a big parent.
    if (peak := _field(STATUS, "VmHWM")) is not None:
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def total_memory() -> int | None:
    """Return the bytes of memory that the machine has, or None where the system doesn't tell."""
    return _field(MEMINFO, "MemTotal")


def available_memory() -> int | None:
    """Return the bytes that this process may still use without swapping, or None where the system doesn't tell.

    It is the least of what the system has, of what is left in each control group that the process is in,
    and of what its own limit of address space leaves. What only caches files counts as free.
    """
    found = [_field(MEMINFO, "MemAvailable"), *_left_in_groups(), _left_of_address_space()]
    return min((value for value in found if value is not None), default=None)


def _left_in_groups() -> Iterator[int]:
    for folder, version in groups("memory"):
        *files, cached = FILES[version]
        limit, used = (number(folder / f"memory.{name}") for name in files)
        if limit is not None and used is not None:
            yield max(0, limit - used + (_field(folder / "memory.stat", cached, 1) or 0))


def _left_of_address_space() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit, used = resource.getrlimit(resource.RLIMIT_AS)[0], _field(STATUS, "VmSize")
    return None if limit == resource.RLIM_INFINITY or used is None else max(0, limit - used)
