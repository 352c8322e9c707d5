"""The profiler on native code: kernels add up to their function, costs are the manifest's, the price is known."""

import contextlib
import math
import time

import pytest
import torch
from small_component import block_component, component_of, load, save
from torch import nn

import runtime.clock
from runtime.clock import KernelClock, spans
from runtime.profiler import Profiler

CLOSE = 0.95  # share of a function's time that is in its kernels, where these are milliseconds each
RUNS = 7
PRICE, CALL = 1e-6, 1e-4  # seconds that it may take at a kernel and at a function
FUNCTIONS = ["pair_context", "pair"]


@pytest.fixture(scope="module")
def heavy(tmp_path_factory):
    """Return the engine of four convolutions of 2.4 GFLOP."""
    layers = [nn.Conv2d(128, 128, 3, padding=1) for _ in range(4)]
    component = component_of(nn.Sequential(*layers), torch.randn(1, 128, 90, 90))
    folder = tmp_path_factory.mktemp("heavy")
    return load(save(component, folder), component.name, folder), [v.numpy() for _, v in component.functions[0].inputs]


@pytest.fixture(scope="module")
def block(tmp_path_factory):
    component, folder = block_component(), tmp_path_factory.mktemp("block")
    return load(save(component, folder), component.name, folder), [v.numpy() for _, v in component.functions[0].inputs]


def test_kernels_add_up_to_the_function(heavy):
    """The best of several calls counts: another process may take the core between two kernels."""
    engine, inputs = heavy
    engine("main", *inputs)
    with Profiler({"small": engine}) as profiler:
        for _ in range(RUNS):
            engine("main", *inputs)
    calls = profiler.recording().calls
    shares = [call.kernel_seconds / call.seconds for call in calls]
    assert len(calls) == RUNS and max(shares) >= CLOSE and all(share < 1 for share in shares)


def test_kernels_and_what_is_none_are_inside_of_their_function(block):
    engine, inputs = block
    with Profiler({"block": engine}) as profiler:
        engine("pair", *inputs)
    calls, kernels = profiler.recording().calls, profiler.recording().kernels
    assert [call.function for call in calls] == FUNCTIONS
    assert sum(entry.seconds for entry in profiler.entries.values()) < sum(call.seconds for call in calls)
    for kernel in kernels:
        assert sum(call.start <= kernel.start <= kernel.end <= call.end for call in calls) == 1


def test_each_call_of_the_manifest_is_seen_and_its_flops_are_the_functions(block):
    engine, inputs = block
    with Profiler({"block": engine}) as profiler:
        engine("pair", *inputs)
    seen = {name: entry.calls for (_, name), entry in profiler.entries.items() if entry.origin is not None}
    counts = {name: [k.calls.get(f, 0) for f in FUNCTIONS] for name, k in engine.description.kernels.items()}
    assert seen == {name: sum(count) for name, count in counts.items() if any(count)}
    calls = profiler.recording().calls
    assert [call.flops for call in calls] == [engine.description.flops(function) for function in FUNCTIONS]
    assert sum(call.flops for call in calls) == sum(entry.flops or 0 for entry in profiler.entries.values())
    assert all(entry.bytes for entry in profiler.entries.values() if entry.origin is not None)


def test_the_price_of_a_kernel(block):
    """The clock is read natively, twice a kernel: calls through Python would take longer than the limit.

    The fastest calls with and without, until they tell; other work only delays that.
    """
    engine, inputs = block
    best, profiler = {True: math.inf, False: math.inf}, Profiler({"block": engine})
    for count in range(1, 1001):
        for on in best:
            with profiler if on else contextlib.nullcontext():
                start = time.perf_counter()
                engine("pair", *inputs)
                best[on] = min(best[on], time.perf_counter() - start)
        kernels = sum(entry.calls for entry in profiler.entries.values()) / count
        if count >= 60 and best[True] - best[False] < kernels * PRICE + len(FUNCTIONS) * CALL:
            return
    pytest.fail(f"{best} seconds for {kernels} kernels")


def test_more_kernels_than_there_is_room_for_are_an_error(block, monkeypatch):
    engine, inputs = block
    monkeypatch.setattr(runtime.clock, "ROOM", 8)
    with Profiler({"block": engine}), pytest.raises(OverflowError, match="room for 4"):
        engine("pair", *inputs)


def test_two_clocks_do_not_disturb_each_other():
    one, other = KernelClock(), KernelClock()
    one.observer(None, "name", True, None)
    assert (len(one.readings()), len(other.readings())) == (1, 0)
    one.start()
    assert len(one.readings()) == 0


def test_names_that_are_no_addresses_are_an_error():
    clock = KernelClock()
    for before in (True, False):
        clock.observer(None, "a name that Python hands over as an object", before, None)
    with pytest.raises(RuntimeError, match="names"):
        spans(clock.readings())


def test_an_engine_outside_of_the_block_is_not_observed(block):
    engine, inputs = block
    with Profiler({"block": engine}) as profiler:
        pass
    engine("pair", *inputs)
    assert profiler.entries == {} and profiler.recording().calls == []
