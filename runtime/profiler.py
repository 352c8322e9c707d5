"""Where the time of a run goes: calls and seconds of every kernel, by component."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from runtime.engine import Engine
from runtime.observer import Observer
from utils import units

ROWS = 20  # rows of a report


@dataclass
class Entry:
    """Calls and seconds of one kernel."""

    calls: int = 0
    seconds: float = 0.0


class Profiler(Observer):
    """Times every kernel of ``engines`` inside a ``with`` block. Engines outside of it run without any cost."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        super().__init__(engines)
        self.entries: dict[tuple[str, str], Entry] = {}

    def _observer(self, component: str) -> Callable[..., int]:
        started = 0.0

        def observe(_function: object, name: str, before: bool, _result: object, *_arguments: object) -> int:
            nonlocal started
            if before:
                started = time.perf_counter()
                return 0
            entry = self.entries.setdefault((component, name), Entry())
            entry.calls += 1
            entry.seconds += time.perf_counter() - started
            return 0

        return observe

    def report(self) -> str:
        """Return a table of the kernels that took most of the time, after a line for each component."""
        total = sum(entry.seconds for entry in self.entries.values()) or 1.0
        lines = [f"{'component':14} {'kernel':48} {'calls':>7} {'time':>9} {'share':>6}"]
        for component in self._engines:
            own = [entry for (name, _), entry in self.entries.items() if name == component]
            lines.append(_row(component, "(all)", sum(e.calls for e in own), sum(e.seconds for e in own), total))
        slowest = sorted(self.entries.items(), key=lambda item: -item[1].seconds)[:ROWS]
        lines += [_row(component, kernel, e.calls, e.seconds, total) for (component, kernel), e in slowest]
        return "\n".join(lines)


def _row(component: str, kernel: str, calls: int, seconds: float, total: float) -> str:
    return f"{component:14} {kernel[:48]:48} {calls:7d} {units.seconds(seconds):>9} {seconds / total:6.1%}"
