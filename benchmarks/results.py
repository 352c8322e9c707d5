"""The figures of a comparison, and what follows from them."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.statistics import interval
from runtime.quality import EQUAL
from utils.files import write_whole

OURS = "tvm"


def decibels(value: float | None, unknown: str = "") -> str:
    """Format a PSNR for a table."""
    if value is None or math.isnan(value):
        return unknown
    return "equal" if value >= EQUAL else f"{value:.1f}"


def case_name(component: str, dtype: str, backend: str) -> str:
    """Return the key of a backend's figures, and of our ratio to it: ``unet_float32_openvino``."""
    return f"{component}_{dtype}_{backend}"


@dataclass
class Results:
    """Figures by ``case_name``. Seconds are of each run in order, memory is in bytes, PSNR in dB against float32 eager.

    ``skipped`` has the reason why a case has none.
    """

    environment: dict[str, Any]
    seconds: dict[str, list[float]] = field(default_factory=dict)
    prepare_seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    peak_memory: dict[str, int | None] = field(default_factory=dict)
    psnr: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def pairs(self) -> dict[str, list[float]]:
        """Return, for each backend but ours, our seconds over its seconds in each round."""
        found = {}
        for name, theirs in self.seconds.items():
            case, _, backend = name.rpartition("_")
            ours = self.seconds.get(f"{case}_{OURS}")
            if backend != OURS and ours is not None:
                found[name] = [a / b for a, b in zip(ours, theirs, strict=True)]
        return found

    def to_json(self) -> dict[str, Any]:
        """Return all of it, with the ratios: below 1 we are faster."""
        pairs = self.pairs()
        return {
            **self.environment,
            "ratios": {name: statistics.median(values) for name, values in pairs.items()},
            "ratio_intervals": {name: list(interval(values)) for name, values in pairs.items()},
            "seconds": self.seconds,
            "prepare_seconds": self.prepare_seconds,
            "peak_memory": self.peak_memory,
            "psnr": self.psnr,
            "skipped": self.skipped,
        }

    def write(self, path: Path) -> None:
        """Write the JSON. The file is replaced whole or not at all."""
        write_whole(path, json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")

    def table(self) -> str:
        """Return a line for each case: median seconds, our ratio to it with its interval, PSNR."""
        pairs, lines = self.pairs(), [f"{'':36}{'median':>10}  {'ratio':>6}  {'interval':<14}  {'PSNR':>8}"]
        for name, values in self.seconds.items():
            line = f"{name:36}{statistics.median(values):8.3f} s"
            if name in pairs:
                low, high = interval(pairs[name])
                line += f"  {statistics.median(pairs[name]):6.3f}  {f'{low:.3f}-{high:.3f}':<14}"
            else:
                line += " " * 24
            lines.append(f"{line}  {self.psnr[name]:5.1f} dB")
        return "\n".join([*lines, *(f"{name:36}skipped: {reason}" for name, reason in self.skipped.items())])
