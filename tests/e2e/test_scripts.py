"""The scripts as a user meets them: help, debug output, profile, threads, names of files, Ctrl-C."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from models.random_checkpoint import RandomConfig
from utils.command_line import flag_name
from utils.config import ROOT, BaselineConfig, BuildConfig, RunConfig

CONFIGS = {
    ("build.py",): BuildConfig,
    ("inference.py",): RunConfig,
    ("inference_basic_sd.py",): BaselineConfig,
    ("-m", "models.random_checkpoint"): RandomConfig,
}
RUN = ("--steps", 3, "--seed", 1, "--prompt", "a red circle")


@pytest.mark.parametrize("command", CONFIGS, ids=lambda command: command[-1])
def test_help_is_complete(good_script, command):
    done = good_script(*command, "--help")
    text = " ".join(done.stdout.split())
    for field in dataclasses.fields(CONFIGS[command]):
        assert f"{flag_name(field.name)} " in text and field.metadata["help"].split("(")[0].strip() in text
    examples = done.stdout.partition("examples:")[2]
    assert examples.count("  python ") >= 2
    known = {flag_name(field.name) for field in dataclasses.fields(CONFIGS[command])}
    assert set(re.findall(r"--[a-z-]+", examples)) <= known, "an example uses a flag that is not there"


def test_debug_writes_the_ir_after_each_pass(v_odd_artifact):
    """The fixture builds with --enable-debug, which the others do without."""
    for component in ("text_encoder", "unet", "vae_decoder"):
        names = sorted(path.name for path in (v_odd_artifact / "debug" / component).iterdir())
        numbers = [int(name[:2]) for name in names]
        assert numbers == list(range(1, len(names) + 1)) and len(names) > 15
        phases = [name.split("-")[1] for name in names]
        assert list(dict.fromkeys(phases)) == ["graph", "dispatch", "rest", "lower"]
        last = (v_odd_artifact / "debug" / component / names[-1]).read_text()
        assert "@I.ir_module" in last and "T.parallel" in last


def test_a_build_without_debug_leaves_none(tiny_artifact):
    names = {path.name for path in tiny_artifact.iterdir()}
    assert names == {"manifest.json", "params", "text_encoder.so", "tokenizer.json", "unet.so", "vae_decoder.so"}


def test_profiling_prints_a_table(good_script, tiny_artifact, tmp_path):
    flags = ("inference.py", "--artifacts-dir", tiny_artifact, "--output-dir", tmp_path, *RUN)
    plain, profiled = good_script(*flags).stdout, good_script(*flags, "--enable-profiling").stdout
    assert "component" not in plain
    header, *rows = profiled.partition("component")[2].splitlines()
    assert re.search(r"kernel\s+calls\s+time\s+share", header)
    for component in ("text_encoder", "unet", "vae_decoder"):
        assert any(row.startswith(component) and "(all)" in row for row in rows)
    shares = [float(re.search(r"([\d.]+)%", row)[1]) for row in rows if "(all)" in row]
    assert sum(shares) == pytest.approx(100, abs=0.3)
    assert any("conv2d" in row or "matmul" in row for row in rows)


@pytest.mark.parametrize("count", [1, 2])
def test_threads_are_what_was_asked(good_script, tiny_artifact, tmp_path, count):
    """The pool of the native code: its own size, and the threads of the process, of which it makes the most."""
    program = (
        "import os, sys; sys.argv = ['inference.py', *sys.argv[1:]]; import inference; inference.main(sys.argv[1:]); "
        "import tvm; print('pool', tvm.get_global_func('runtime.NumThreads')(), len(os.listdir('/proc/self/task')))"
    )
    flags = ("--artifacts-dir", tiny_artifact, "--output-dir", tmp_path, *RUN, "--num-threads", count)
    done = good_script("-c", program, *flags, env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})
    pool, _tasks = map(int, done.stdout.partition("pool ")[2].split())
    assert pool == count


def test_pictures_are_never_overwritten(good_script, tiny_artifact, tmp_path):
    flags = ("inference.py", "--artifacts-dir", tiny_artifact, "--output-dir", tmp_path, *RUN)
    for _ in range(2):
        good_script(*flags)
        good_script(*flags, "--output-image", "x.png")
    names = sorted(os.listdir(tmp_path))
    assert names == ["00001-1-a-red-circle.png", "00002-1-a-red-circle.png", "x-1.png", "x.png"]
    with Image.open(tmp_path / "x.png") as file:
        text = file.text["parameters"]
    assert text.startswith("a red circle\nSteps: 3, Sampler: ") and "Seed: 1, Size: 64x64" in text


def test_the_summary(good_script, tiny_artifact, tmp_path):
    done = good_script("inference.py", "--artifacts-dir", tiny_artifact, "--output-dir", tmp_path, "--steps", 3)
    seed, picture, summary = done.stdout.splitlines()
    assert re.fullmatch(r"seed \d+", seed) and os.path.isfile(ROOT / picture)
    time_ = r"\d[\d.]* m?s"
    assert re.fullmatch(
        rf"load {time_}, text {time_}, \d steps {time_} \([\d.]+ steps/s\), decode {time_}, peak memory [\d.]+ [MG]B",
        summary,
    )


def interrupt(command, ready, timeout=120):
    """Start a script, send Ctrl-C once ``ready()`` holds, and return its exit code and stderr."""
    process = subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        end = time.monotonic() + timeout
        while not ready() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        assert process.poll() is None, f"ended before it could be interrupted: {process.communicate()}"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, stderr


def test_ctrl_c_between_pictures(tiny_artifact, tmp_path):
    """Pictures that were done stay and are whole; of the one at hand nothing is left."""
    output = tmp_path / "out"
    command = ["inference.py", "--artifacts-dir", tiny_artifact, "--output-dir", output, "--num-images", 1000]
    code, stderr = interrupt([*command, *RUN], lambda: output.exists() and len(list(output.glob("*.png"))) >= 2)
    assert code == 130 and "Traceback" not in stderr and "interrupted" in stderr
    names = os.listdir(output)
    assert len(names) >= 2 and all(name.endswith(".png") and not name.startswith(".") for name in names)
    for name in names:
        with Image.open(output / name) as file:
            file.load()


def test_ctrl_c_in_the_steps(tiny_artifact, tmp_path):
    output = tmp_path / "out"
    log = tmp_path / "log"
    command = [
        "inference.py",
        "--artifacts-dir",
        tiny_artifact,
        "--output-dir",
        output,
        "--steps",
        999,
        "--enable-debug",
    ]
    program = f"import sys, runpy; sys.stdout = open({str(log)!r}, 'w', buffering=1); sys.argv = sys.argv[1:]; "
    program += "runpy.run_path(sys.argv[0], run_name='__main__')"
    code, stderr = interrupt(["-c", program, *command], lambda: log.exists() and log.read_text().count("\n") > 5)
    assert code == 130 and "Traceback" not in stderr and "interrupted" in stderr
    assert log.read_text().count('"step"') < 999
    assert not output.exists() or os.listdir(output) == []


def test_ctrl_c_in_a_build(tmp_path):
    output = tmp_path / "artifact"
    command = ["build.py", "--model", "random:tiny", "--output-dir", output, "--enable-cache", 0]
    code, stderr = interrupt(
        command, lambda: any((folder / "text_encoder.so").exists() for folder in tmp_path.iterdir())
    )
    assert code == 130 and "Traceback" not in stderr and "interrupted" in stderr
    assert os.listdir(tmp_path) == []
