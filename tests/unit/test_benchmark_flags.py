"""The flags of benchmark.py: what they ask for, and what is refused in one line."""

from pathlib import Path

import pytest

from backends.peer import ON_CUDA, PEERS
from benchmarks import flags, measure
from benchmarks.flags import BenchmarkConfig
from benchmarks.measure import Measurement
from utils import targets
from utils.command_line import parse
from utils.errors import UserError


def config(*words):
    return parse(BenchmarkConfig, ["--json", "a.json", *words], "", "")


def test_all_backends_draw_unless_a_section_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config().backend_names == list(PEERS) and config().compares_backends
    assert config("--ladder").backend_names == ["tvm"] and not config("--ladder").compares_backends
    for words in (["--throughput", "3"], ["--latency-report", "9"], ["--tome-sweep", "0"], ["--winograd"]):
        assert not config(*words).compares_backends
    both = config("--attention", "--backends", "tvm,eager,tvm")
    assert both.compares_backends and both.backend_names == ["tvm", "eager"]


def test_resolutions_are_width_and_height(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config().sizes == [(None, None)]
    assert config("--resolutions", "512x768, 64x64").sizes == [(512, 768), (64, 64)]


def test_ratios(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config().ratios == [] and config("--tome-sweep", "0,0.2,0.2,.75").ratios == [0.0, 0.2, 0.75]


def test_what_our_build_leaves_out_is_part_of_its_artifact_s_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain, without = (Measurement(config(*words)) for words in ([], ["--disable", "winograd"]))
    (plain_session,), (session,) = plain.sessions, without.sessions
    assert session.settings.disable == "winograd" == without.results.settings["disable"]
    assert session.settings.artifact != plain_session.settings.artifact


def test_two_files_are_compared_and_nothing_else_is_looked_at():
    made = parse(BenchmarkConfig, ["--compare", "old.json", "new.json"], "", "")
    assert made.compare == (Path("old.json"), Path("new.json"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--backends", "openvin"], "did you mean openvino?"),
        (["--dtype", "float16"], "--dtype float16 is not to be had on a CPU; use float32 or bfloat16"),
        (["--device", "gpu"], "choose from: cpu, cuda"),
        (["--runs", "0"], "--runs must be from 1"),
        (["--warmups", "-1"], "--warmups must be from 0"),
        (["--throughput", "2"], "name 3 steps or more"),
        (["--latency-report", "-1"], "--latency-report must be from 0"),
        (["--judge-images", "9"], "does nothing without --tome-sweep"),
        (["--tome-sweep", "0,nan"], "ratios are from 0 to 0.75, not nan"),
        (["--tome-sweep", "0.8"], "ratios are from 0 to 0.75"),
        (["--tome-sweep", "0,"], "is no number"),
        (["--resolutions", "512"], "'512' is no WIDTHxHEIGHT"),
        (["--resolutions", "512x513"], "--height must be a multiple of 8"),
        (["--steps", "0"], "--steps must be from 1"),
        (["--ladder", "--dtype", "bfloat16"], "--ladder has precisions of its own"),
        (["--batch-size", "0"], "--batch-size must be"),
        (["--batch-size", "2", "--ladder"], "--ladder is of one picture at a time"),
        (["--batch-size", "2", "--enable-profiling"], "--enable-profiling is of one picture at a time"),
        (["--disable", "winogrd"], "did you mean winograd?"),
        (["--disable", "split_float32", "--dtype", "bfloat16"], "--dtype bfloat16 needs"),
        (["--tome-sweep", "0", "--disable", "winograd"], "--tome-sweep chooses optimisations itself"),
        (["--tome-sweep", "0", "--resolutions", "64x64,72x64"], "--tome-sweep is of one size"),
        (["--json", "none/a.json"], "there is no folder"),
        (["--report", "file/x"], "--report"),
        (["--compare", "a.json"], "expected 2 arguments"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_flags(tmp_path, monkeypatch, given, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError) as caught:
        config(*given)
    assert words in str(caught.value)


def test_what_runs_on_a_gpu(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for where, name in ((flags, "present_arch"), (targets, "present_arch"), (measure, "present_name")):
        monkeypatch.setattr(where, name, lambda: "sm_90")
    asked = config("--device", "cuda")
    assert asked.backend_names == list(ON_CUDA) and asked.precision == "float16"
    (session,) = Measurement(asked).sessions
    assert (session.settings.device, session.settings.dtype) == ("cuda", "float16")
    assert session.settings.artifact.name == "artifact-float16-cuda"
    assert Measurement(asked).results.settings["gpu"] == "sm_90"
    for words, message in (
        (["--backends", "openvino"], "choose from: eager, compile, tvm"),
        (["--dtype", "float32"], "use float16 or bfloat16"),
        (["--ladder"], "only pictures side by side are measured there"),
    ):
        with pytest.raises(UserError, match=message):
            config("--device", "cuda", *words)
    monkeypatch.setattr(flags, "present_arch", lambda: None)
    with pytest.raises(UserError, match="--device cuda: no GPU was found here"):
        config("--device", "cuda")


def test_the_file_is_needed():
    with pytest.raises(UserError, match="--json is missing"):
        parse(BenchmarkConfig, [], "", "")
