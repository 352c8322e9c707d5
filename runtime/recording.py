"""What a profiler writes down while pictures are drawn, on either side: kernels, the calls they belong to, phases.

All times are seconds of one clock, that of ``time.perf_counter``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

STEPS = "steps"  # the part of a run that its steps are
UNET = "unet"
KEPT = 200_000  # kernel calls that a trace has at most, some 20 MB; the sums have all of them


@dataclass(frozen=True)
class Phase:
    """A stretch of a run: which ``part`` of it (text, steps, decode) and what it is called there."""

    part: str
    name: str
    start: float
    end: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.start


@dataclass
class Call:
    """A call of a component's function: when, the seconds inside of its kernels, and the FLOPs of these."""

    component: str
    function: str
    start: float
    end: float
    kernel_seconds: float = 0.0
    flops: int = 0

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.start


class KernelCall(NamedTuple):
    """One call of a kernel, or of what is none, for the trace."""

    component: str
    name: str
    start: float
    end: float


class Cost(Protocol):
    """What one call of a kernel costs, as the manifest has it."""

    @property
    def origin(self) -> str:
        """What kind of kernel it is."""

    @property
    def flops(self) -> int | None:
        """Those of its operator."""

    @property
    def bytes(self) -> int | None:
        """Its inputs, weights and results."""


@dataclass
class Entry:
    """All calls of one kernel: how many, their seconds, FLOPs and bytes, None where these are not known.

    ``origin`` is what kind of kernel it is; what is none (allocation, views) has none.
    """

    origin: str | None
    calls: int = 0
    seconds: float = 0.0
    flops: int | None = None
    bytes: int | None = None


@dataclass
class Recording:
    """What one side did. ``left_out`` counts kernel calls that are in ``entries`` but not in ``kernels``."""

    side: str
    entries: dict[tuple[str, str], Entry] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    kernels: list[KernelCall] = field(default_factory=list)
    left_out: int = 0

    def add_kernel(self, component: str, name: str, start: float, end: float, cost: Cost | None) -> None:
        """Add a call of a kernel, or of what is none and has no cost."""
        entry = self.entries.get((component, name))
        if entry is None:
            entry = self.entries[component, name] = Entry(None if cost is None else cost.origin)
        entry.calls += 1
        entry.seconds += end - start
        if cost is not None:
            entry.flops = None if cost.flops is None else (entry.flops or 0) + cost.flops
            entry.bytes = None if cost.bytes is None else (entry.bytes or 0) + cost.bytes
        if len(self.kernels) < KEPT:
            self.kernels.append(KernelCall(component, name, start, end))
        else:
            self.left_out += 1

    @property
    def components(self) -> list[str]:
        """The components that were called, the first one first."""
        return list(dict.fromkeys(call.component for call in self.calls))
