"""benchmark.py as a user runs it, on a tiny model: pictures of two backends, their JSON and report, bad input."""

import dataclasses
import json
import os
import statistics
from dataclasses import replace

import pytest

from benchmarks import schema
from benchmarks.flags import BenchmarkConfig
from benchmarks.profiles import TOLD
from runtime.trace import read_trace
from utils.command_line import flag_name

RUNS, STEPS = 2, 2
CALLS = STEPS + 1  # of the UNet: PNDM's first step is made of two
FLAGS = ("--model", "random:tiny", "--steps", STEPS, "--runs", RUNS, "--num-threads", 1)


@pytest.fixture(scope="module")
def measured(good_script, tmp_path_factory):
    """What was printed, the results, the folder of the file."""
    folder = tmp_path_factory.mktemp("benchmark")
    sections = ("--backends", "eager,tvm", "--throughput", 3, "--latency-report", 3, "--enable-profiling")
    places = ("--json", folder / "a.json", "--report", folder / "report", "--work", folder / "work")
    done = good_script("benchmark.py", *FLAGS, *sections, *places)
    return done.stdout, schema.read(folder / "a.json"), folder


def test_each_backend_has_every_figure(measured):
    _, results, folder = measured
    eager, ours = results.backends
    assert (eager.name, ours.name, ours.resolution) == ("eager", "tvm", "64x64")
    for row in (eager, ours):
        assert row.skipped is None
        parts = (row.text_seconds, row.unet_seconds, row.vae_seconds)
        assert [len(seconds) for seconds in (*parts, row.total_seconds)] == [RUNS] * 4
        assert all(sum(each) <= total for *each, total in zip(*parts, row.total_seconds, strict=True))
        assert row.psnr >= 60 and row.peak_memory > 5e7 and row.first_picture_seconds > min(row.total_seconds)
        assert row.iterations_per_second == pytest.approx(STEPS / statistics.median(row.unet_seconds))
        assert (folder / row.picture).is_file()
    pairs = [a / b for a, b in zip(ours.total_seconds, eager.total_seconds, strict=True)]
    assert eager.ours_seconds == ours.total_seconds and eager.ratio == pytest.approx(statistics.median(pairs))
    assert set(eager.prepare_seconds) == {"load"} and set(ours.prepare_seconds) == {"build", "load"}
    assert ours.size > 1e5


def test_throughput_and_latency(measured):
    _, results, _ = measured
    assert [row.name for row in results.throughput] == [row.name for row in results.latency] == ["eager", "tvm"]
    assert all(row.steps == [1, 2, 3] and len(row.seconds) == 3 for row in results.throughput)
    assert all(min(row.seconds) <= row.p50 <= row.p99 <= max(row.seconds) for row in results.latency)


def test_profiles_of_both_scripts(measured):
    _, results, folder = measured
    assert [(row.name, row.resolution, row.skipped) for row in results.profiles] == [
        ("eager", "64x64", None),
        ("tvm", "64x64", None),
    ]
    for row in results.profiles:
        assert row.profile.step.steps == CALLS and row.profile.subject.num_threads == 1
        parts = row.profile.components
        told = sum(kernel.seconds for kernel in row.profile.kernels)  # with what the virtual machine does itself
        assert TOLD * sum(part.kernel_seconds for part in parts) <= told <= sum(part.seconds for part in parts)
    events = read_trace(folder / "traces" / "64x64.json")
    assert {event["pid"] for event in events} == {1, 2}


def test_the_environment_is_told(measured):
    _, results, _ = measured
    place = results.environment
    assert place.threads == 1 and place.cpu and place.versions["torch"] and place.date.startswith("20")
    assert results.settings["model"] == "random:tiny" and results.settings["seed"] == 0
    assert not {"json", "work", "report", "compare"} & set(results.settings)


def test_tables_and_report_are_made(measured):
    stdout, results, folder = measured
    assert all(f"\n{section}\n" in stdout for section in ("backends", "throughput", "latency", "profiles"))
    assert results.environment.cpu in (folder / "report" / "index.html").read_text(encoding="utf-8")


def test_a_run_against_itself_is_no_slower_and_one_of_a_slow_backend_is(measured, script, tmp_path):
    _, results, _ = measured
    parts = ("total_seconds", "text_seconds", "unet_seconds", "vae_seconds")
    for name, factor in (("old", 1.0), ("new", 1.5)):
        rows = [replace(row, **{part: [factor] * 5 for part in parts}) for row in results.backends]
        schema.write(replace(results, backends=rows, throughput=[], latency=[]), tmp_path / f"{name}.json")
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    assert script("benchmark.py", "--compare", old, old).returncode == 0
    slower = script("benchmark.py", "--compare", old, new)
    assert slower.returncode == 1 and "slower" in slower.stdout and slower.stderr == ""


def test_help_is_complete(good_script):
    done = good_script("benchmark.py", "--help")
    assert all(f"{flag_name(field.name)} " in done.stdout for field in dataclasses.fields(BenchmarkConfig))
    assert done.stdout.partition("examples:")[2].count("  python benchmark.py") >= 4


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--json", "{0}/a.json", "--backends", "egaer"], "did you mean eager?"),
        (["--json", "{0}/a.json", "--runs", "0"], "--runs must be from 1"),
        (["--json", "{0}/none/a.json"], "there is no folder"),
        (["--json", "{0}/a.json", "--model", "random:tinny"], "did you mean tiny?"),
        (["--compare", "{0}/cut.json", "{0}/cut.json"], "can't be read"),
        (["--compare", "{0}/other.json", "{0}/cut.json"], "has schema 99"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input(script, tmp_path, flags, words):
    (tmp_path / "cut.json").write_text('{"schema": 1, "back')
    (tmp_path / "other.json").write_text(json.dumps({"schema": 99}))
    words_given = [text.format(tmp_path) for text in flags]
    done = script("benchmark.py", "--work", tmp_path / "work", *words_given)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and words in line
    assert "a.json" not in os.listdir(tmp_path)
