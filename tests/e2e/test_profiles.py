"""--enable-profiling of both scripts: tables, profiles and traces, and what they say about the same model."""

import json
import re

import pytest
from trace_checks import check_trace

from runtime.profile import read_profile
from runtime.profile_tables import side_by_side
from runtime.trace import merge_traces, read_trace

RUN = ("--steps", 3, "--seed", 1, "--prompt", "a red circle", "--scheduler-label", "ddim")
COMPONENTS = {"text_encoder", "unet", "vae_decoder"}


@pytest.fixture(scope="module")
def runs(good_script, tiny_artifact, tmp_path_factory):
    """Return folder and output of both scripts, each of which draws two pictures of the same model."""
    folder, done = tmp_path_factory.mktemp("profiles"), {}
    for side, script in (
        ("TVMerge", ("inference.py", "--artifacts-dir", tiny_artifact)),
        ("diffusers", ("inference_basic_sd.py", "--model", "random:tiny")),
    ):
        flags = ("--output-dir", folder, "--output-image", f"{side}.png", "--num-images", 2, "--num-threads", 1)
        done[side] = good_script(*script, *flags, *RUN, "--enable-profiling")
    return folder, done


@pytest.fixture(params=["TVMerge", "diffusers"])
def side(request):
    return request.param


def test_the_files_lie_beside_the_first_picture(runs, side):
    folder, done = runs
    names = {path.name for path in folder.iterdir() if path.name.startswith(side)}
    assert names == {f"{side}{end}" for end in (".png", "-1.png", ".profile.json", ".trace.json")}
    assert done[side].stderr == ""
    assert done[side].stdout.splitlines()[-2:] == [str(folder / f"{side}.{kind}.json") for kind in ("profile", "trace")]


def test_the_tables(runs, side):
    text = runs[1][side].stdout
    assert re.search(r"component +kernel +calls +time +share +GFLOP/s +GB/s +FLOP/B +of roof", text)
    assert len(re.findall(r"^\w+ +\(all\) ", text, re.MULTILINE)) == 3
    assert re.search(r"roofs of 1 threads: \d+ GFLOP/s and [\d.]+ GB/s", text)
    rows = re.findall(r"^(kernels|host|other|all) +([\d.]+) ms +([\d.]+)%$", text, re.MULTILINE)
    assert [name for name, _, _ in rows] == ["kernels", "host", "other", "all"]
    milliseconds, shares = ([float(row[i]) for row in rows] for i in (1, 2))
    assert sum(milliseconds[:3]) == pytest.approx(milliseconds[3], abs=0.03)
    assert sum(shares[:3]) == pytest.approx(100, abs=0.2)


def test_the_profile(runs, side):
    profile = read_profile(runs[0] / f"{side}.profile.json")
    assert (profile.subject.side, profile.subject.num_threads, profile.subject.width) == (side, 1, 64)
    assert {each.component for each in profile.components} == COMPONENTS
    assert set(profile.phases) == {"text", "steps", "decode"} and profile.step.steps == 6
    assert profile.phases["steps"] == pytest.approx(6 * profile.step.seconds)
    step = profile.step
    assert 0 < step.kernel_seconds + step.host_seconds + step.other_seconds == pytest.approx(step.seconds)
    assert min(step.kernel_seconds, step.host_seconds, step.other_seconds, step.utilisation) > 0
    for each in profile.components:
        own = [kernel for kernel in profile.kernels if kernel.component == each.component]
        kernels = sum(kernel.seconds for kernel in own if kernel.origin is not None)
        assert kernels == pytest.approx(each.kernel_seconds) and sum(kernel.seconds for kernel in own) <= each.seconds
    known = [kernel for kernel in profile.kernels if kernel.intensity is not None]
    assert {kernel.bound for kernel in known} <= {"compute", "memory"} and len(known) > 20
    for kernel in known:
        assert kernel.intensity == pytest.approx(kernel.flops / kernel.bytes)
        assert kernel.flops_per_second == pytest.approx(kernel.flops / kernel.seconds)


def test_both_sides_count_the_same_flops(runs):
    """Keys and values of cross-attention are computed once a picture here and once a step there."""
    ours, theirs = (read_profile(runs[0] / f"{side}.profile.json") for side in ("TVMerge", "diffusers"))
    (unet,) = (each for each in ours.components if each.component == "unet")
    keys_and_values = (unet.flops - 6 * ours.step.flops) / 2
    assert ours.step.flops + keys_and_values == pytest.approx(theirs.step.flops, rel=0.05)


def test_the_trace(runs, side):
    events = read_trace(runs[0] / f"{side}.trace.json")
    check_trace(events)
    names = [event["name"] for event in events if event.get("cat") == "phase"]
    assert {"text", "step 1", "step 2", "step 3", "decode"} == set(names)
    assert {event["args"]["name"] for event in events if event["ph"] == "M"} == {side, *COMPONENTS}
    calls = [event for event in events if event.get("cat") == "call"]
    phases = [event for event in events if event.get("cat") == "phase"]
    assert len(calls) >= 2 + 6 + 2 and len(phases) >= 1 + 6 + 2
    profile = read_profile(runs[0] / f"{side}.profile.json")
    kernels = [event for event in events if event["ph"] == "X" and event["cat"] not in ("phase", "call")]
    assert len(kernels) == sum(kernel.calls for kernel in profile.kernels)
    seconds = sum(kernel.seconds for kernel in profile.kernels)
    assert sum(event["dur"] for event in kernels) * 1e-6 == pytest.approx(seconds, rel=1e-2)


def test_both_as_one(runs, tmp_path):
    folder, _ = runs
    merge_traces([folder / f"{side}.trace.json" for side in ("TVMerge", "diffusers")], tmp_path / "both.json")
    events = json.loads((tmp_path / "both.json").read_text())["traceEvents"]
    check_trace(events)
    assert {event["pid"] for event in events} == {1, 2}
    text = side_by_side([folder / f"{side}.profile.json" for side in ("TVMerge", "diffusers")])
    assert text.splitlines()[0].split() == ["TVMerge", "|", "diffusers"] and len(text.splitlines()) == 1 + 7 + 12


def test_without_the_flag_there_is_none(good_script, tiny_artifact, tmp_path):
    done = good_script("inference.py", "--artifacts-dir", tiny_artifact, "--output-dir", tmp_path, *RUN)
    assert [path.suffix for path in tmp_path.iterdir()] == [".png"] and "kernel" not in done.stdout
