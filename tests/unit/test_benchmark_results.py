"""Figures of a comparison: ratios, intervals, the file; flags that are refused; order of the calls."""

import json
import math
import os
from pathlib import Path

import pytest

from backends.peer import Settings
from benchmarks import cpu, session
from benchmarks.config import CpuConfig
from benchmarks.results import Results
from benchmarks.workers import WorkerError
from utils.command_line import parse
from utils.errors import UserError


def results(**seconds):
    names = {f"unet_float32_{backend}": values for backend, values in seconds.items()}
    return Results({"cpu": "a CPU"}, seconds=names, psnr=dict.fromkeys(names, 100.0))


def test_a_ratio_is_the_median_of_the_rounds():
    values = results(tvm=[1.0, 4.0, 3.0], openvino=[2.0, 4.0, 12.0], eager=[10.0, 10.0, 10.0]).to_json()
    assert values["ratios"] == pytest.approx({"unet_float32_openvino": 0.5, "unet_float32_eager": 0.3})
    assert values["ratio_intervals"]["unet_float32_openvino"] == [0.25, 1.0]


def test_without_our_own_seconds_there_are_no_ratios():
    values = results(openvino=[1.0], eager=[2.0])
    assert values.to_json()["ratios"] == {} and "unet_float32_eager" in values.table()


def test_precisions_are_kept_apart():
    mixed = Results({}, seconds={"unet_float32_tvm": [1.0], "unet_bfloat16_openvino": [4.0]})
    assert mixed.pairs() == {}


def test_the_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    good = results(tvm=[1.0], eager=[2.0])
    good.write(path)
    assert json.loads(path.read_text())["seconds"] == good.seconds
    with pytest.raises(ValueError, match="JSON"):
        results(tvm=[math.nan], eager=[1.0]).write(path)
    assert json.loads(path.read_text())["seconds"] == good.seconds
    assert os.listdir(tmp_path) == ["a.json"]


def test_the_table_has_every_case():
    values = results(tvm=[1.0, 1.0], eager=[4.0, 2.0])
    values.skipped["unet_float32_openvino"] = "not installed"
    lines = values.table().splitlines()
    assert [line.split()[0] for line in lines[1:]] == [f"unet_float32_{n}" for n in ("tvm", "eager", "openvino")]
    assert "0.375" in lines[2] and "0.250-0.500" in lines[2] and "skipped: not installed" in lines[3]


# --- flags ---


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--json is missing"),
        (["--json", "{0}"], "is a folder"),
        (["--json", "{0}/none/a.json"], "there is no folder"),
        (["--json", "{0}/a.json", "--backends", "eager,openvni"], "'openvni' is unknown (did you mean openvino?)"),
        (["--json", "{0}/a.json", "--backends", ""], "choose from: eager, compile, onnxruntime, openvino, tvm"),
        (["--json", "{0}/a.json", "--components", "unt"], "did you mean unet?"),
        (["--json", "{0}/a.json", "--dtype", "float16"], "choose from: float32, bfloat16"),
        (["--json", "{0}/a.json", "--runs", "0"], "--runs must be from 1"),
        (["--json", "{0}/a.json", "--warmups", "-1"], "--warmups must be from 0"),
        (["--json", "{0}/a.json", "--steps", "0"], "--steps must be from 1"),
        (["--json", "{0}/a.json", "--num-threads", "0"], "--num-threads must be from 1"),
        (["--json", "{0}/a.json", "--height", "63"], "--height must be a multiple of 8"),
        (["--json", "{0}/a.json", "--work", "{0}/file/x"], "--work"),
        (["--json", "{0}/a.json", "--artifacts-dir", "{0}"], "--artifacts-dir"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_flags(tmp_path, flags, words):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError) as caught:
        parse(CpuConfig, [text.format(tmp_path) for text in flags], "", "")
    assert words in str(caught.value)
    assert os.listdir(tmp_path) == ["file"]


def test_names_are_taken_once_in_the_order_given(tmp_path):
    config = CpuConfig(json=tmp_path / "a", backends="tvm, eager,tvm", components="unet", dtype="bfloat16,float32")
    assert config.backend_names == ["tvm", "eager"]
    assert config.cases == [("unet", "bfloat16"), ("unet", "float32")]


# --- the calls ---


class FakeWorker:
    """Stands in for a process: records whose turn it was, and fails where it is told to."""

    calls: list[str] = []  # noqa: RUF012  all workers record into one list
    failing: dict[str, int] = {}  # noqa: RUF012  by backend: the number of the call that fails, 0 is the start

    def __init__(self, task, backend, components, settings, log):
        self.task, self.backend, self.settings, self.count = task, backend, settings, 0

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self):
        if self.task == "serve":
            FakeWorker.calls.append(f"close {self.backend}")

    def _fail(self):
        if FakeWorker.failing.get(self.backend) == self.count:
            raise WorkerError(f"{self.backend} failed")

    def start(self):
        if self.task == "reference":
            return {"settings": {**self.settings.to_json(), "folder": "/there", "height": 64, "width": 64}}
        assert self.settings.folder == Path("/there")
        if self.task == "convert":
            if FakeWorker.failing.get(self.backend) == -1:
                raise WorkerError("no conversion")
            return {}
        self._fail()
        return {"prepare_seconds": {"load": 1.0}}

    def run(self):
        self.count += 1
        FakeWorker.calls.append(self.backend)
        self._fail()
        return {"seconds": float(self.count), "psnr": 100.0 - self.count, "peak_memory": 10 * self.count}


@pytest.fixture
def compare(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "Worker", FakeWorker)
    monkeypatch.setattr(cpu, "PAUSE_SECONDS", 0)
    monkeypatch.setattr(FakeWorker, "calls", [])

    def run(failing=None, **flags):
        monkeypatch.setattr(FakeWorker, "failing", failing or {})
        flags = {"components": "unet", "dtype": "float32", "runs": 3, "warmups": 1} | flags
        cpu.Comparison(CpuConfig(json=tmp_path / "a.json", work=tmp_path / "work", **flags)).run()
        return json.loads((tmp_path / "a.json").read_text())

    return run


def test_calls_take_turns_and_another_begins_each_round(compare):
    values = compare(backends="eager,openvino,tvm")
    rounds = [FakeWorker.calls[i : i + 3] for i in range(0, 12, 3)]
    assert rounds == [
        ["eager", "openvino", "tvm"],
        ["openvino", "tvm", "eager"],
        ["tvm", "eager", "openvino"],
        ["eager", "openvino", "tvm"],
    ]
    assert values["seconds"]["unet_float32_tvm"] == [2.0, 3.0, 4.0], "the first call is the warm-up"
    assert values["psnr"]["unet_float32_tvm"] == 96.0, "the worst of the measured calls"
    assert values["ratios"] == {"unet_float32_eager": 1.0, "unet_float32_openvino": 1.0}
    assert values["settings"]["runs"] == 3 and values["skipped"] == {}


@pytest.mark.parametrize(("at", "reason"), [(-1, "no conversion"), (0, "openvino failed"), (3, "openvino failed")])
def test_a_backend_that_fails_is_skipped_and_the_others_go_on(compare, at, reason):
    values = compare({"openvino": at}, backends="openvino,tvm,eager")
    assert values["skipped"] == {"unet_float32_openvino": reason}
    assert set(values["seconds"]) == set(values["prepare_seconds"]) == {"unet_float32_tvm", "unet_float32_eager"}
    assert len(values["seconds"]["unet_float32_tvm"]) == 3
    if at > 0:
        assert "close openvino" in FakeWorker.calls[: FakeWorker.calls.index("openvino") + 12]


def test_all_may_fail(compare):
    values = compare({"tvm": -1, "eager": 1}, backends="tvm,eager")
    assert values["seconds"] == values["ratios"] == {}
    assert values["skipped"] == {"unet_float32_tvm": "no conversion", "unet_float32_eager": "eager failed"}


def test_settings_survive_the_way_to_a_worker():
    settings = Settings(
        model="m",
        dtype="float32",
        height=None,
        width=64,
        num_threads=2,
        steps=3,
        folder=Path("/a"),
        artifacts_dir=Path("/b"),
    )
    assert Settings.from_json(json.loads(json.dumps(settings.to_json()))) == settings
