"""A recording summed up: roofs, shares, the average step, files and tables."""

import json
import re
from dataclasses import asdict

import pytest
from recordings import PEAK, SUBJECT, Cost, recording

from runtime import profile_tables as module
from runtime import recording as recordings_module
from runtime.profile import read_profile, save, summarise
from runtime.profile_tables import finish, report, side_by_side
from runtime.recording import Recording
from utils.errors import UserError


@pytest.fixture
def summary():
    return summarise(recording(), SUBJECT, PEAK)


def kernel(summary, name):
    (found,) = (kernel for kernel in summary.kernels if kernel.kernel == name)
    return found


def test_a_kernel_is_measured_against_the_lower_roof(summary):
    multiply = kernel(summary, "multiply")  # the ridge is at 10 FLOPs a byte
    assert (multiply.calls, multiply.seconds, multiply.flops, multiply.bytes) == (2, 12.0, 600, 20)
    assert (multiply.flops_per_second, multiply.bytes_per_second) == (50.0, pytest.approx(20 / 12))
    assert (multiply.intensity, multiply.bound, multiply.of_roof) == (30.0, "compute", 0.5)
    norm = kernel(summary, "norm")
    assert (norm.intensity, norm.bound) == (1.0, "memory") and norm.of_roof == pytest.approx(2 / 10)
    copy = kernel(summary, "copy")
    assert (copy.intensity, copy.bound) == (0.0, "memory") and copy.of_roof == pytest.approx(20 / 4 / 10)


def test_what_is_not_known_is_none(summary):
    for name, origin in (("odd", "odd"), ("vm.builtin.reshape", None)):
        found = kernel(summary, name)
        assert found.origin == origin and found.seconds > 0
        known = (found.flops, found.bytes, found.flops_per_second, found.bytes_per_second, found.intensity)
        assert {*known, found.bound, found.of_roof} == {None}


def test_kernels_and_components_share_the_seconds_of_all_calls(summary):
    seconds = {each.component: each.seconds for each in summary.components}
    assert seconds == {"text_encoder": 7.0, "unet": 32.0, "vae_decoder": 10.0}
    assert sum(each.share for each in summary.components) == pytest.approx(1)
    assert [each.seconds for each in summary.kernels] == sorted((k.seconds for k in summary.kernels), reverse=True)
    for each in summary.components:
        own = [k for k in summary.kernels if k.component == each.component and k.origin is not None]
        assert sum(k.seconds for k in own) == each.kernel_seconds <= each.seconds
        assert sum(k.flops or 0 for k in own) == each.flops
    assert summary.phases == {"text": 10.0, "steps": 40.0, "decode": 10.0}


def test_the_average_step_adds_up(summary):
    step = summary.step
    assert (step.steps, step.seconds, step.kernel_seconds, step.host_seconds, step.other_seconds) == (2, 20, 8, 8, 4)
    assert step.flops == 300 and step.utilisation == pytest.approx(300 / 20 / 100)


def test_the_report_names_what_took_most_of_the_time_first(summary):
    lines = report(summary).splitlines()
    assert re.match(r"component\s+kernel\s+calls\s+time\s+share\s+GFLOP/s\s+GB/s\s+FLOP/B\s+of roof", lines[0])
    assert ["(all)" in line for line in lines[1:5]] == [True, True, True, False]
    assert lines[4].split()[:4] == ["unet", "multiply", "2", "12.0"] and lines[4].endswith("50.0% compute")
    table = report(summary).partition("average step")[2]
    assert re.search(r"kernels\s+8000.00 ms\s+40.0%\nhost\s+8000.00 ms\s+40.0%\nother\s+4000.00 ms\s+20.0%", table)


def test_a_recording_of_nothing_has_a_report():
    summary = summarise(Recording("ours"), SUBJECT, PEAK)
    assert summary.step.steps == 0 and summary.kernels == [] and "average step" in report(summary)


def test_a_profile_is_read_as_it_was_written(summary, tmp_path):
    paths = save(summary, recording(), tmp_path / "a.b.png")
    assert [path.name for path in paths] == ["a.b.profile.json", "a.b.trace.json"]
    assert read_profile(paths[0]) == summary
    assert json.loads(paths[0].read_text()) == asdict(summary)


def test_finish_measures_writes_and_tells(tmp_path, monkeypatch, summary):
    monkeypatch.setattr(module, "measure_apart", lambda threads: PEAK if threads == SUBJECT.num_threads else None)
    text = finish(recording(), SUBJECT, tmp_path / "x.png")
    assert text == "\n".join([report(summary), str(tmp_path / "x.profile.json"), str(tmp_path / "x.trace.json")])
    assert {path.name for path in tmp_path.iterdir()} == {"x.profile.json", "x.trace.json"}


def test_a_folder_that_cannot_be_written(summary, tmp_path):
    with pytest.raises(UserError, match="the profile can't be written"):
        save(summary, recording(), tmp_path / "none" / "x.png")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 0}', '{"schema": 1}', "[" * 100_000])
def test_what_is_no_profile_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=r"x\.json"):
        read_profile(tmp_path / "x.json")


def test_side_by_side(tmp_path):
    paths = []
    for side in ("ours", "theirs"):
        made = recording(side)
        for number in range(20):
            made.add_kernel("unet", f"small {number}", 0.0, 0.001 * number, Cost("rule", 1, 1))
        subject = SUBJECT.__class__(**{**asdict(SUBJECT), "side": side})
        paths.append(save(summarise(made, subject, PEAK), made, tmp_path / f"{side}.png")[0])
    lines = side_by_side(paths).splitlines()
    assert lines[0].split() == ["ours", "|", "theirs"]
    assert sum(line.count("multiply") for line in lines) == 2
    top = lines[[line.startswith("kernel ") for line in lines].index(True) + 1 :]
    assert len(top) == 10 and all(left.strip() == right.strip() for left, right in (line.split(" | ") for line in top))
    assert top[0].split("|")[0].split() == ["multiply", "6000.00", "30.0%", "0.0"]


def test_a_trace_is_kept_short_and_the_sums_are_whole(monkeypatch):
    monkeypatch.setattr(recordings_module, "KEPT", 3)
    made = recording()
    assert (len(made.kernels), made.left_out) == (3, 5)
    assert sum(entry.calls for entry in made.entries.values()) == 8
