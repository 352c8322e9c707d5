"""The profiler as engines see it: kernels, what is none, functions that fail, and what it costs."""

import time
from types import SimpleNamespace

import pytest
from fake_artifact import BYTES, CALLS, FLOPS, KERNEL, write_artifact

from runtime.artifact import Artifact
from runtime.profiler import Profiler
from runtime.recording import Phase


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
def engines(tmp_path):
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


def test_two_readings_of_the_clock_are_all_that_a_kernel_waits_for():
    """TVM's way into Python comes on top, 1 to 1.5 us each time: tests/compile has both."""
    profiler = Profiler({"unet": SimpleNamespace()})
    observe = profiler._observer("unet")
    times = []
    for _ in range(50):
        start = time.perf_counter()
        for _ in range(200):
            observe(None, "kernel", True, None)
            observe(None, "kernel", False, None)
        times.append((time.perf_counter() - start) / 200)
    assert min(times) < 5e-6
