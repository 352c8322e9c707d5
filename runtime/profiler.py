"""Where the time of a run goes: when every kernel, function and phase began and ended."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from runtime.engine import Engine
from runtime.observer import Observer
from runtime.recording import Call, Entry, Phase, Recording

SIDE = "TVMerge"


class Profiler(Observer):
    """Times every kernel of ``engines`` inside a ``with`` block. Engines outside of it run without any cost.

    At a kernel the clock is read twice, no more: with TVM's way into Python some 3 us. The rest is done between phases.
    """

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        super().__init__(engines)
        self._recording = Recording(SIDE)
        self._seen: list[Any] = []  # start, end and name of the kernels of the function that is being called, in turn
        self._calls: list[tuple[Call, list[Any]]] = []  # made but not yet taken into the recording

    @property
    def entries(self) -> dict[tuple[str, str], Entry]:
        """Calls and seconds of each kernel by component and symbol, with what is no kernel."""
        return self.recording().entries

    def note(self, phase: Phase) -> None:
        """Take notice of a phase that has ended."""
        self._recording.phases.append(phase)
        self.recording()

    def recording(self) -> Recording:
        """Return all there is to tell so far."""
        for call, seen in self._calls:
            self._take(call, seen)
        self._calls.clear()
        return self._recording

    def _take(self, call: Call, seen: list[Any]) -> None:
        """Add a call with its kernels, whose costs the artifact tells."""
        description = self._engines[call.component].description
        call.flops = description.flops(call.function)
        for start, end, name in zip(seen[::3], seen[1::3], seen[2::3], strict=True):
            kernel = description.kernels.get(name)
            self._recording.add_kernel(call.component, name, start, end, kernel)
            if kernel is not None:
                call.kernel_seconds += end - start
        self._recording.calls.append(call)

    def _observer(self, _component: str) -> Callable[..., int]:
        note, clock = self._seen.append, time.perf_counter

        def observe(_function: object, name: str, before: bool, _result: object, *_arguments: object) -> int:
            note(clock())
            if not before:
                note(name)
            return 0

        return observe

    @contextlib.contextmanager
    def _around(self, component: str, function: str) -> Iterator[None]:
        self._seen.clear()
        start = time.perf_counter()
        yield
        self._calls.append((Call(component, function, start, time.perf_counter()), self._seen.copy()))
