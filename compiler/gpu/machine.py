"""What kernels need to know of the GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

SHARED = {"sm_75": 64, "sm_80": 163, "sm_86": 99, "sm_89": 99, "sm_90": 227}
"""Shared memory in KiB that a block may ask for. Source: CUDA C++ Programming Guide, Technical Specifications."""
MULTIPROCESSORS = {"sm_75": 40, "sm_80": 108, "sm_86": 82, "sm_89": 128, "sm_90": 132}
"""Of a large card of each: T4, A100, RTX 3090, RTX 4090, H100."""


@dataclass(frozen=True)
class Gpu:
    """The architecture that code is made for ("sm_90"), and the type that it multiplies, of 16 bits or float32."""

    arch: str
    dtype: str

    winograd_tile: ClassVar[None] = None  # a product is cheaper

    @property
    def is_narrow(self) -> bool:
        """Whether the type is one of tensor cores; float32 is left to TVM's rules."""
        return self.dtype != "float32"

    @property
    def shared(self) -> int:
        """Bytes of shared memory that a block may ask for."""
        return SHARED[self.arch] << 10

    @property
    def multiprocessors(self) -> int:
        """How many blocks are to be had, so that all of the GPU has work."""
        return MULTIPROCESSORS[self.arch]

    @property
    def panel(self) -> int:
        """Columns of a product that stay together: those of one tensor core instruction."""
        return 8

    @property
    def lanes(self) -> int:
        """Columns of values, or of gates, that lie together in gated weights."""
        return 8
