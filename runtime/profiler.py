"""Where the time of a run goes: when every kernel, function and phase began and ended."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from runtime.clock import KernelClock, spans
from runtime.engine import Engine
from runtime.observer import Observer
from runtime.recording import Call, Entry, Phase, Recording

SIDE = "TVMerge"


class Profiler(Observer):
    """Times every kernel of ``engines`` inside a ``with`` block. Engines outside of it run without any cost.

    At a kernel the clock is read twice, no more. The rest is done between phases.
    """

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        super().__init__(engines)
        self._recording = Recording(SIDE)
        self._clock = KernelClock()
        self._calls: list[tuple[Call, np.ndarray]] = []  # made but not yet taken into the recording

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
        for call, readings in self._calls:
            self._take(call, readings)
        self._calls.clear()
        return self._recording

    def _take(self, call: Call, readings: np.ndarray) -> None:
        """Add a call with its kernels, whose costs the artifact tells."""
        description = self._engines[call.component].description
        call.flops = description.flops(call.function)
        for name, start, end in spans(readings):
            kernel = description.kernels.get(name)
            self._recording.add_kernel(call.component, name, start, end, kernel)
            if kernel is not None:
                call.kernel_seconds += end - start
        self._recording.calls.append(call)

    def _observer(self, _component: str) -> Callable[..., int]:
        return self._clock.observer

    @contextlib.contextmanager
    def _around(self, component: str, function: str) -> Iterator[None]:
        self._clock.start()
        start = time.perf_counter()
        yield
        self._calls.append((Call(component, function, start, time.perf_counter()), self._clock.readings()))
