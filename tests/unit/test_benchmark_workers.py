"""Both sides of a worker: the process that answers, and the parent that copes with one that doesn't."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from backends import worker
from backends.peer import Peer, Settings
from benchmarks import workers
from benchmarks.workers import Worker, WorkerError
from runtime.quality import EQUAL, psnr
from utils.config import ROOT
from utils.errors import UserError

REFERENCE = np.linspace(-1, 1, 12, dtype=np.float32)


@pytest.fixture
def settings(tmp_path):
    common = {"model": "random:tiny", "dtype": "float32", "num_threads": 1, "steps": 2, "artifacts_dir": None}
    (tmp_path / "unet").mkdir()
    np.savez(tmp_path / "unet" / "inputs.npz", latent=REFERENCE)
    np.save(tmp_path / "unet" / "reference.npy", REFERENCE)
    return Settings(**common, height=64, width=64, folder=tmp_path)


class FakePeer(Peer):
    name = "eager"
    error = 0.0

    def prepare(self, component):
        return {"load": 1.0}

    def run(self, inputs):
        return inputs["latent"] + np.float32(self.error)


@pytest.fixture
def answers(settings, monkeypatch):
    monkeypatch.setattr(worker, "load", lambda name, settings: FakePeer(settings))
    monkeypatch.setattr(worker, "SAMPLE_SECONDS", 0.001)

    def run(*lines, task="serve", **changes):
        job = {"task": task, "peer": "eager", "components": ["unet"], "settings": {**settings.to_json(), **changes}}
        return list(worker.answers([json.dumps(job), *lines]))

    return run


def test_each_line_is_a_call(answers, settings, monkeypatch):
    monkeypatch.setattr(FakePeer, "error", 0.001)
    ready, first, second = answers("run\n", "run\n")
    assert ready == {"prepare_seconds": {"load": 1.0}}
    assert first["seconds"] > 0 and second["seconds"] > 0 and first["peak_memory"] > 1e6
    assert first["psnr"] == second["psnr"] == pytest.approx(60, abs=0.1)
    output = np.load(settings.output_folder("unet", "eager") / "output.npy")
    assert np.array_equal(output, REFERENCE + np.float32(0.001))


def test_an_equal_output_has_a_finite_psnr(answers):
    assert answers("run")[1]["psnr"] == EQUAL


def test_an_output_that_is_none_is_refused(answers, monkeypatch):
    monkeypatch.setattr(FakePeer, "error", math.nan)
    with pytest.raises(UserError, match="eager unet: the output has NaN or Inf"):
        answers("run")


def test_bfloat16_without_its_instructions(answers, monkeypatch):
    monkeypatch.setattr("backends.peer.host_instruction_sets", lambda: ["avx2", "avx512f"])
    with pytest.raises(UserError, match="no bfloat16 instructions"):
        answers(dtype="bfloat16")
    monkeypatch.setattr("backends.peer.host_instruction_sets", lambda: ["avx512bf16"])
    assert answers(dtype="bfloat16") == [{"prepare_seconds": {"load": 1.0}}]


def test_a_long_call_is_counted_once_and_a_short_one_often_after_one_that_warms_up():
    calls = []

    def call(seconds):
        calls.append(seconds)
        time.sleep(seconds)
        return REFERENCE

    seconds, _ = worker.sample(lambda: call(0.21))
    assert len(calls) == 2 and seconds >= 0.21
    calls.clear()
    seconds, result = worker.sample(lambda: call(0.01))
    assert 3 < len(calls) < 25 and 0.01 <= seconds < 0.2 and result is REFERENCE


def test_psnr():
    noisy = REFERENCE + np.array([0.01, -0.01] * 6, np.float32)
    assert psnr(REFERENCE, noisy) == pytest.approx(40, abs=1e-3)
    assert psnr(REFERENCE, REFERENCE) == math.inf
    for bad in (noisy[:5], np.where(noisy > 0, np.nan, noisy)):
        assert psnr(REFERENCE, bad) == -math.inf
    assert psnr(np.zeros(3), np.zeros(3)) == -math.inf


def test_the_process_tells_its_errors_on_stdout_and_keeps_what_is_printed_off_it(settings):
    job = {"task": "serve", "peer": "eager", "components": ["command"], "settings": settings.to_json()}
    program = "import backends.worker as w; w.load = lambda *a: print('noise') or 1 / 0; w.main()"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, input=json.dumps(job), capture_output=True, text=True, timeout=60
    )
    assert json.loads(done.stdout) == {"error": "ZeroDivisionError: division by zero"}
    assert "Traceback" in done.stderr and "noise" in done.stderr


# --- the parent ---

PROGRAMS = {
    "echo": "for line in sys.stdin: print(json.dumps({'line': line.strip()}), flush=True)",
    "error": "print(json.dumps({'error': 'no reason'}), flush=True)",
    "exit": "sys.stdin.readline(); print('the last  line', file=sys.stderr); sys.exit(3)",
    "silent": "sys.stdin.readline(); sys.exit(4)",
    "killed": "sys.stdin.readline(); os.kill(os.getpid(), signal.SIGKILL)",
    "crash": "sys.stdin.readline(); os.kill(os.getpid(), signal.SIGSEGV)",
    "cut": "sys.stdin.readline(); print('{\"half', end='', flush=True); os.kill(os.getpid(), signal.SIGKILL)",
    "deaf": "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('{}', flush=True); time.sleep(600)",
    "parent": (
        "p = subprocess.Popen(['sh', '-c', 'trap \"\" TERM; sleep 600']);"
        "print(json.dumps({'pid': p.pid}), flush=True); time.sleep(600)"
    ),
}


@pytest.fixture
def start(tmp_path, settings, monkeypatch):
    """Make a worker whose process runs a program of ours, and start it."""
    monkeypatch.setattr(workers, "ROOT", tmp_path)
    monkeypatch.setattr(workers, "GRACE_SECONDS", 0.5)
    (tmp_path / "backends").mkdir()

    def make(program):
        imports = "import json, os, signal, subprocess, sys, time\n"
        (tmp_path / "backends" / "worker.py").write_text(imports + PROGRAMS[program])
        return Worker("serve", "eager", ["unet"], settings, tmp_path / "logs" / "a.log")

    return make


def test_the_job_is_the_first_line(start, settings):
    with start("echo") as process:
        job = json.loads(process.start()["line"])
        assert process.run() == {"line": "run"}
    assert job == {"task": "serve", "peer": "eager", "components": ["unet"], "settings": settings.to_json()}


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("error", "no reason"),
        ("exit", "the last line"),
        ("silent", "the process ended with exit code 4"),
        ("killed", "the process was killed (out of memory?)"),
        ("crash", "the process ended by SIGSEGV"),
        ("cut", "the process was killed (out of memory?)"),
    ],
)
def test_a_process_that_fails(start, program, reason):
    with start(program) as process:
        with pytest.raises(WorkerError) as caught:
            process.start()
        assert str(caught.value) == reason
        if program != "error":
            with pytest.raises(WorkerError):
                process.run()


def is_running(pid):
    """Return whether a process is there and no zombie."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_at_the_end_the_process_and_its_children_are_gone(start):
    with start("parent") as process:
        child = process.start()["pid"]
        assert is_running(child)
    end = time.monotonic() + 10
    while is_running(child) and time.monotonic() < end:
        time.sleep(0.02)
    assert not is_running(child)


def test_one_that_does_not_listen_is_killed(start):
    with start("deaf") as process:
        process.start()
        pid = process._process.pid
        begin = time.monotonic()
    assert time.monotonic() - begin < 10 and not os.path.exists(f"/proc/{pid}")
