"""python -m benchmarks.cpu as a user runs it, on a tiny model: the JSON, the outputs, and bad input."""

import dataclasses
import importlib.util
import json
import os
import statistics

import numpy as np
import pytest
from pictures import picture_psnr

from benchmarks.config import CpuConfig
from utils.command_line import flag_name

COMMAND = ("-m", "benchmarks.cpu")
COMPONENTS = ("unet", "vae_decoder", "text_encoder")
KEYS = {
    *("cpu", "features", "threads", "versions", "settings", "ratios", "ratio_intervals"),
    *("seconds", "prepare_seconds", "peak_memory", "psnr", "skipped"),
}
RUNS = 2
HAS_OPENVINO = importlib.util.find_spec("openvino") is not None
PEERS = ("eager", "openvino", "tvm") if HAS_OPENVINO else ("eager", "tvm")


@pytest.fixture(scope="module")
def compared(good_script, tiny_artifact, tmp_path_factory):
    """Everything but torch.compile, which takes minutes: what was printed, the JSON, the folder of the work."""
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "results").mkdir()
    flags = {
        "--json": folder / "results" / "a.json",
        "--model": "random:tiny",
        "--backends": "eager,openvino,tvm",
        "--dtype": "float32",
        "--runs": RUNS,
        "--steps": 2,
        "--num-threads": 1,
        "--work": folder / "work",
        "--artifacts-dir": tiny_artifact,
    }
    done = good_script(*COMMAND, *(word for pair in flags.items() for word in pair))
    assert os.listdir(folder / "results") == ["a.json"]
    return done.stdout, json.loads((folder / "results" / "a.json").read_text()), folder / "work"


def test_the_json_has_every_figure(compared):
    _, values, _ = compared
    assert set(values) == KEYS
    measured = {f"{part}_float32_{name}" for part in COMPONENTS for name in PEERS}
    measured |= {f"command_float32_{name}" for name in PEERS if name != "eager"}
    for key in ("seconds", "prepare_seconds", "peak_memory", "psnr"):
        assert set(values[key]) == measured, key
    assert all(len(each) == RUNS and min(each) > 0 for each in values["seconds"].values())
    assert all(min(each.values()) > 0 for each in values["prepare_seconds"].values())
    assert all(each > 5e7 for each in values["peak_memory"].values())
    assert values["threads"] == 1 and values["cpu"] and values["features"] and values["versions"]["torch"]
    assert values["settings"]["runs"] == RUNS and not {"json", "work", "artifacts_dir"} & set(values["settings"])


def test_what_is_skipped_has_its_reason(compared):
    skipped = compared[1]["skipped"]
    assert "prepared model" in skipped.pop("command_float32_eager")
    if HAS_OPENVINO:
        assert skipped == {}
    else:
        assert set(skipped) == {f"{part}_float32_openvino" for part in (*COMPONENTS, "command")}
        assert all("openvino is not installed" in reason for reason in skipped.values())


def test_ratios_are_what_the_seconds_say(compared):
    values = compared[1]
    expected = {name for name in values["seconds"] if not name.endswith("_tvm")}
    assert set(values["ratios"]) == set(values["ratio_intervals"]) == expected
    for name, ratio in values["ratios"].items():
        ours = values["seconds"][name.rpartition("_")[0] + "_tvm"]
        pairs = [a / b for a, b in zip(ours, values["seconds"][name], strict=True)]
        assert ratio == pytest.approx(statistics.median(pairs))
        assert values["ratio_intervals"][name] == pytest.approx([min(pairs), max(pairs)])


def test_the_outputs_agree(compared):
    _, values, work = compared
    assert all(decibel >= 60 for decibel in values["psnr"].values())
    (model,) = (path for path in work.iterdir() if path.name.startswith("random-tiny-"))
    for part in COMPONENTS:
        reference = np.load(model / part / "reference.npy")
        assert reference.std() > 1e-3
        for name in PEERS:
            output = np.load(model / part / f"{name}-float32" / "output.npy")
            assert np.abs(output - reference).max() < 1e-3 * np.abs(reference).max(), (part, name)
    pictures = [np.load(path).astype(float) for path in model.glob("command-2-steps/*/output.npy")]
    reference = np.load(model / "command-2-steps" / "reference.npy").astype(float)
    assert len(pictures) == len(PEERS) - 1
    assert all(picture_psnr(reference, picture) > 40 for picture in pictures)


def test_the_table_is_printed(compared):
    stdout, values, _ = compared
    assert f"{values['cpu']}, 1 threads" in stdout
    for name, seconds in values["seconds"].items():
        (line,) = (line for line in stdout.splitlines() if line.startswith(f"{name} "))
        assert f"{statistics.median(seconds):.3f} s" in line


def test_help_is_complete(good_script):
    done = good_script(*COMMAND, "--help")
    assert all(f"{flag_name(field.name)} " in done.stdout for field in dataclasses.fields(CpuConfig))
    assert done.stdout.partition("examples:")[2].count("  python -m benchmarks.cpu") >= 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--json", "{0}/a.json", "--backends", "egaer"], "did you mean eager?"),
        (["--json", "{0}/a.json", "--runs", "0"], "--runs must be from 1"),
        (["--json", "{0}/none/a.json"], "there is no folder"),
        (["--json", "{0}/a.json", "--jsn", "b"], "did you mean --json?"),
        (["--json", "{0}/a.json", "--artifacts-dir", "{0}"], "no manifest.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_flags(script, tmp_path, flags, words):
    done = script(*COMMAND, "--work", tmp_path / "work", *(text.format(tmp_path) for text in flags))
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and words in line
    assert os.listdir(tmp_path) == []


def test_an_unknown_model(script, tmp_path):
    done = script(*COMMAND, "--json", tmp_path / "a.json", "--work", tmp_path / "work", "--model", "random:tinny")
    assert done.returncode == 2 and "did you mean tiny?" in done.stderr and len(done.stderr.splitlines()) == 1
    assert os.listdir(tmp_path) == ["work"]
