"""Traces: valid events, children inside of their parents, and several of them as one."""

import json

import pytest
from recordings import recording
from trace_checks import check_trace

from runtime.recording import KernelCall, Phase
from runtime.trace import EVENTS, events, merge_traces, read_trace, write_trace
from utils.errors import UserError


def named(found, name):
    return [event for event in found if event["name"] == name]


def test_events_are_nested_and_in_order():
    found = events(recording())
    check_trace(found)
    (process,) = named(found, "process_name")
    threads = {event["args"]["name"]: event["tid"] for event in named(found, "thread_name")}
    assert process["args"]["name"] == "ours" and list(threads) == ["text_encoder", "unet", "vae_decoder"]
    (step,), guided = named(found, "step 2"), named(found, "guided")
    assert (step["ts"], step["dur"], step["cat"], step["tid"]) == (30e6, 20e6, "phase", threads["unet"])
    assert [(event["ts"], event["dur"], event["cat"]) for event in guided] == [
        (12e6, 16e6, "call"),
        (32e6, 16e6, "call"),
    ]
    assert {event["cat"] for event in named(found, "multiply")} == {"matmul"}
    assert {event["cat"] for event in named(found, "vm.builtin.reshape")} == {"no kernel"}


def test_a_phase_is_on_the_thread_of_each_component_that_it_called():
    made = recording()
    made.phases[0] = Phase("text", "text", 0.0, 29.0)
    del made.phases[1]
    assert [event["tid"] for event in named(events(made), "text")] == [1, 2]


def test_nothing_sticks_out_however_the_moments_are_rounded():
    made = recording()
    made.kernels = [KernelCall("unet", "multiply", 12.0 + i / 7, 12.0 + (i + 1) / 7) for i in range(112)]
    check_trace(events(made))


def test_what_is_checked_is_noticed():
    found = events(recording())
    for event in (named(found, "guided")[0], named(found, "multiply")[0]):
        grown = [{**each, "dur": 1e9} if each is event else each for each in found]
        with pytest.raises(AssertionError):
            check_trace(grown)


def test_merged_traces_keep_their_sides_apart(tmp_path):
    for side in ("ours", "theirs"):
        write_trace(events(recording(side)), tmp_path / side)
    merge_traces([tmp_path / "ours", tmp_path / "theirs"], tmp_path / "both")
    found = read_trace(tmp_path / "both")
    check_trace(found)
    assert {event["pid"]: event["args"]["name"] for event in named(found, "process_name")} == {1: "ours", 2: "theirs"}
    assert [event["ts"] for event in named(found, "step 1")] == [10e6, 10e6]
    merge_traces([tmp_path / "both", tmp_path / "ours"], tmp_path / "three")
    assert sorted({event["pid"] for event in read_trace(tmp_path / "three")}) == [1, 2, 3]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"traceEvents": 3}', '{"traceEvents": [{"ph": "X"}]}'])
def test_what_is_no_trace_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=r"x\.json is no trace"):
        merge_traces([tmp_path / "x.json"], tmp_path / "y.json")
    with pytest.raises(UserError, match=r"none is no trace"):
        read_trace(tmp_path / "none")
    assert not (tmp_path / "y.json").exists()


def test_the_file_is_a_trace_of_json(tmp_path):
    write_trace(events(recording()), tmp_path / "x", left_out=3)
    value = json.loads((tmp_path / "x").read_text())
    assert set(value) == {EVENTS, "displayTimeUnit", "otherData"} and value["otherData"] == {"kernels_left_out": 3}
