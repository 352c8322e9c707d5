"""What tuning records depend on: the instruction sets that kernels use, cores and caches; told without TVM.

LLVM's name of a CPU is none of it: machines of one name may differ in all three, and those of two names in none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.cpu import cache_sizes
from utils.targets import architecture

INFO = "info.json"
USED = {  # by the kernels, with what stands for them in a name, best first
    "amxbf16": "amx",
    "avx512bf16": "bf16",
    "avx512f": "avx512",
    "avx2": "avx2",
    "fma": "",
    "avx": "avx",
    "neon": "neon",
}
BASE = ("avx512f", "avx2", "avx", "neon")  # of which a name has the best


@dataclass(frozen=True)
class Kind:
    """A kind of machine: records of one are good on all others of it. Cache sizes in bytes, see ``Caches``."""

    architecture: str
    sets: tuple[str, ...]
    cores: int
    l1: int
    l2: int

    @property
    def name(self) -> str:
        """The name of its folder, as in ``x86_64-avx512-bf16-amx-2-cores-48k-2048k``."""
        base = next((USED[name] for name in BASE if name in self.sets), "plain")
        units = [USED[name] for name in ("avx512bf16", "amxbf16") if name in self.sets]
        return "-".join([self.architecture, base, *units, f"{self.cores}-cores", f"{self.l1 >> 10}k-{self.l2 >> 10}k"])

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Kind:
        """Return the kind that parsed JSON tells.

        Raises:
            TypeError: it tells none.
        """
        kind = cls(**values)
        return cls(kind.architecture, tuple(kind.sets), kind.cores, kind.l1, kind.l2)

    def is_like(self, other: Kind) -> bool:
        """Tell whether the machines are the same, whatever instruction sets code for them uses."""
        return (self.architecture, self.cores, self.l1, self.l2) == (
            other.architecture,
            other.cores,
            other.l1,
            other.l2,
        )


def read_kind(info: Path) -> Kind | None:
    """Return the kind that a file of a database tells, or None where it can't be read."""
    try:
        return Kind.of(json.loads(info.read_text(encoding="utf-8"))["kind"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def kind_here(features: Iterable[str], cores: int) -> Kind:
    """Return the kind of this machine, as seen by code that uses ``features`` (normal names) on ``cores``."""
    caches = cache_sizes()
    return Kind(architecture(), tuple(sorted(set(features) & set(USED))), cores, caches.l1, caches.l2)
