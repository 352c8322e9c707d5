"""Where the time of a diffusers run goes: torch.profiler's operators as a recording like that of the runtime.

A kernel is the outermost operator of PyTorch with the shapes of its first two inputs, so that its calls do alike. What
torch.compile makes of operators has no names here: it counts as the host's time.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

from torch.profiler import ProfilerActivity, profile, record_function

from backends.diffusers import DiffusersBackend
from runtime.recording import Call, Phase, Recording

SIDE = "diffusers"
CALL = "tvmerge.call."  # begins the name of the range that is a component's call
CLOCK = "tvmerge.clock"  # a range that began at a known moment
QUIET = "6"  # above all that torch.profiler's library would print
Event = Any  # of torch.autograd.profiler_util, times in microseconds


@dataclass(frozen=True)
class Operator:
    """An operator of PyTorch and what one call costs, where its shapes tell."""

    origin: str
    flops: int | None
    bytes: int | None


class TorchProfiler:
    """Times every operator of ``backend`` inside a ``with`` block."""

    def __init__(self, backend: DiffusersBackend) -> None:
        self._backend = backend
        self._phases: list[Phase] = []
        self._profile = profile(activities=[ProfilerActivity.CPU], record_shapes=True, with_flops=True)
        self._stack = contextlib.ExitStack()
        self._began = 0.0

    def __enter__(self) -> TorchProfiler:
        os.environ.setdefault("KINETO_LOG_LEVEL", QUIET)
        pipe = self._backend.pipe
        self._stack.enter_context(self._profile)
        for component, owner, name in (
            ("text_encoder", pipe.text_encoder, "_compiled_call_impl"),
            ("unet", pipe.unet, "_compiled_call_impl"),
            ("vae_decoder", pipe.vae, "decode"),
        ):
            called = _ranged(component, getattr(owner, name) or owner._call_impl)
            self._stack.enter_context(mock.patch.object(owner, name, called))
        for _ in range(2):  # the first one is slower
            self._began = time.perf_counter()
            with record_function(CLOCK):
                pass
        return self

    def __exit__(self, *details: object) -> None:
        self._stack.close()

    def note(self, phase: Phase) -> None:
        """Take notice of a phase that has ended."""
        self._phases.append(phase)

    def recording(self) -> Recording:
        """Return all there is to tell, after the ``with`` block."""
        events = self._profile.events()
        assert events is not None  # noqa: S101 - the block is over
        offset = self._began - [e.time_range.start for e in events if e.name == CLOCK][-1] * 1e-6
        recording = Recording(SIDE, phases=self._phases)
        for event in events:
            if event.name.startswith(CALL):
                self._take(recording, event, offset)
        recording.calls.sort(key=lambda call: call.start)
        return recording

    def _take(self, recording: Recording, event: Event, offset: float) -> None:
        """Add a component's call with its kernels."""
        component = event.name.removeprefix(CALL)
        call = Call(component, "call", *_span(event, offset))
        for kernel in _operators(event):
            start, end = _span(kernel, offset)
            cost = _cost(kernel, self._backend.dtype.itemsize)
            recording.add_kernel(component, _name(kernel), start, end, cost)
            call.kernel_seconds += end - start
            call.flops += cost.flops or 0
        recording.calls.append(call)


def _ranged(component: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function`` with its calls as ranges of the profile."""

    def call(*arguments: Any, **options: Any) -> Any:
        with record_function(CALL + component):
            return function(*arguments, **options)

    return call


def _span(event: Event, offset: float) -> tuple[float, float]:
    return offset + event.time_range.start * 1e-6, offset + event.time_range.end * 1e-6


def _operators(event: Event) -> Iterator[Event]:
    """Yield the outermost operators inside of ``event``."""
    for child in event.cpu_children:
        if "::" in child.name:
            yield child
        else:
            yield from _operators(child)


def _shapes(event: Event) -> list[list[int]]:
    return [shape for shape in event.input_shapes or [] if shape]


def _name(event: Event) -> str:
    sizes = ["x".join(map(str, shape)) for shape in _shapes(event)[:2]]
    return " ".join([event.name.removeprefix("aten::"), *sizes])


def _cost(event: Event, itemsize: int) -> Operator:
    """Return the FLOPs, and for operators that have most of them the bytes, by the shapes of the inputs."""
    shapes = _shapes(event)
    if event.name == "aten::linear":
        data, weight, *_ = shapes
        return _known(event, 2 * math.prod(data) * weight[0], math.prod(data[:-1]) * weight[0], itemsize)
    if event.name == "aten::conv2d" and event.flops:
        return _known(event, event.flops, event.flops // (2 * math.prod(shapes[1][1:])), itemsize)
    if event.name == "aten::scaled_dot_product_attention":
        query, key, value, *_ = shapes
        flops = 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
        return _known(event, flops, math.prod(query[:-1]) * value[-1], itemsize)
    return Operator(event.name, _total_flops(event) or None, None)


def _known(event: Event, flops: int, results: int, itemsize: int) -> Operator:
    moved = results + sum(math.prod(shape) for shape in _shapes(event))
    return Operator(event.name, int(flops), int(moved) * itemsize)


def _total_flops(event: Event) -> int:
    """Return what PyTorch counts of an operator and those that it calls."""
    return int(event.flops or 0) + sum(_total_flops(child) for child in event.cpu_children)
