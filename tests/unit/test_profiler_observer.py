"""The profiler as engines see it: kernels, what is none, functions that fail. tests/compile has the clock itself."""

import ctypes
import time

import numpy as np
import pytest
from fake_artifact import BYTES, CALLS, FLOPS, KERNEL, write_artifact

import runtime.profiler
from runtime.artifact import Artifact
from runtime.profiler import Profiler
from runtime.recording import Phase


class Clock:
    """A ``KernelClock`` that is called from Python."""

    def __init__(self):
        self.names = {}

    def start(self):
        self.read = []

    def observer(self, _function, name, *_rest):
        address = ctypes.addressof(self.names.setdefault(name, ctypes.create_string_buffer(name.encode())))
        self.read.append([*divmod(int(time.perf_counter() * 1e9), 10**9), address])
        return 0

    def readings(self):
        return np.array(self.read, np.int64).reshape(-1, 3)


class Instrumented:
    """An engine whose functions call the kernel of the artifact and one that is none."""

    def __init__(self, artifact, component):
        self.description = artifact.manifest.components[component]
        self.observer = self.around = None

    def instrument(self, observer, around=None):
        self.observer, self.around = observer, around

    def call(self, function, seconds=0.0, fail=False):
        with self.around(function):
            for name in [KERNEL, "vm.builtin.reshape"] * CALLS:
                assert self.observer(None, name, True, None, 1, 2, 3) == 0
                time.sleep(seconds)
                if fail:
                    raise ValueError("broken")
                assert self.observer(None, name, False, None, 1, 2, 3) == 0


@pytest.fixture
def engines(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime.profiler, "KernelClock", Clock)
    artifact = Artifact(write_artifact(tmp_path / "a"))
    return {name: Instrumented(artifact, name) for name in ("text_encoder", "unet")}


def test_kernels_have_the_costs_of_the_artifact(engines):
    with Profiler(engines) as profiler:
        engines["text_encoder"].call("encode")
        engines["unet"].call("guided", 0.002)
        engines["unet"].call("guided", 0.002)
    assert engines["unet"].observer is None
    kernel = profiler.entries["unet", KERNEL]
    assert (kernel.origin, kernel.calls) == ("matmul", 2 * CALLS)
    assert (kernel.flops, kernel.bytes) == (2 * CALLS * FLOPS, 2 * CALLS * BYTES)
    assert kernel.seconds >= 2 * CALLS * 0.002
    other = profiler.entries["unet", "vm.builtin.reshape"]
    assert (other.origin, other.calls, other.flops, other.bytes) == (None, 2 * CALLS, None, None)
    assert profiler.entries["text_encoder", KERNEL].calls == CALLS


def test_calls_have_their_kernels_seconds_and_flops(engines):
    with Profiler(engines) as profiler:
        engines["unet"].call("guided", 0.005)
        profiler.note(Phase("steps", "step 1", 0.0, time.perf_counter()))
        engines["unet"].call("unguided")
    first, second = profiler.recording().calls
    assert (first.component, first.function, second.function) == ("unet", "guided", "unguided")
    assert first.flops == CALLS * FLOPS == engines["unet"].description.flops("guided")
    assert CALLS * 0.005 <= first.kernel_seconds < first.seconds and second.start >= first.end
    kernels = profiler.recording().kernels
    assert len(kernels) == 4 * CALLS
    assert all(first.start <= k.start <= k.end <= first.end for k in kernels[: 2 * CALLS])
    assert [phase.name for phase in profiler.recording().phases] == ["step 1"]


def test_a_function_that_fails_leaves_nothing_to_the_next(engines):
    with Profiler(engines) as profiler:
        with pytest.raises(ValueError, match="broken"):
            engines["unet"].call("guided", fail=True)
        engines["unet"].call("guided")
    assert [call.function for call in profiler.recording().calls] == ["guided"]
    assert profiler.entries["unet", KERNEL].calls == CALLS
