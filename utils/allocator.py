"""Settings of glibc's allocator for large tensors. It reads them when a process starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

# Memory in huge pages: a CPU that walks through gigabytes spends much of its time on finding small ones.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
# Kept when freed: glibc returns each large tensor to the system and fetches the next one anew.
KEPT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}


def restart_with(settings: Mapping[str, str]) -> None:
    """Start this program anew with ``settings`` in its environment, unless they are there already or set otherwise."""
    missing = {name: value for name, value in settings.items() if name not in os.environ}
    if sys.platform == "linux" and missing:
        arguments = [sys.executable, *sys.orig_argv[1:]]
        os.execve(sys.executable, arguments, os.environ | missing)  # noqa: S606 - no shell is wanted
