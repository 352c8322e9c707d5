"""build.py and bad input: exit code 2, one line that helps, nothing left behind and nothing lost."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from safetensors.numpy import load_file, save_file

from compiler.optimisations import OPTIMISATIONS
from utils.config import ROOT


@pytest.fixture
def refused(script, tmp_path):
    """Run build.py, check that it is refused in one line and leaves nothing, and return the line."""

    def run(*flags):
        output = tmp_path / "out"
        done = script("build.py", "--output-dir", output, *flags)
        assert done.returncode == 2, done.stdout + done.stderr
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
        assert not output.exists() and not [name for name in os.listdir(tmp_path) if name.startswith(".")]
        return lines[0]

    return run


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--model", "random:tiny", "--target", "llvn"],
            ["--target", "'llvn'", "did you mean llvm", "auto, llvm, cuda"],
        ),
        (["--model", "random:tiny", "--target", "cuda"], ["--target cuda"]),
        (
            ["--target", '{"kind": "llvm", "mcpu": "znver9"}'],
            ["--target mcpu", "'znver9'", "did you mean znver", "haswell"],
        ),
        (["--disable", "layuot"], ["--disable", "'layuot'", "did you mean layout", *OPTIMISATIONS, "all"]),
        (["--disable", "fusion,nothing"], ["--disable", "'nothing'", *OPTIMISATIONS]),
        (["--model", "random:tinny"], ["random:tinny", "did you mean tiny", "sd15"]),
        (["--model", "random:tiny", "--height", "60"], ["--height", "multiple of 8", "60"]),
        (["--model", "random:tiny", "--height", "0"], ["--height", "multiple of 8", "0"]),
        (["--model", "random:tiny", "--width", "-8"], ["--width", "multiple of 8", "-8"]),
        (["--model", "random:tiny", "--width", "64.0"], ["--width", "64.0"]),
        (["--model", "random:tiny", "--batch-size", "0"], ["--batch-size", "from 1"]),
        (["--num-threads", "0"], ["--num-threads", "from 1"]),
        (["--heigth", "64"], ["--heigth", "did you mean --height"]),
    ],
)
def test_bad_flags(refused, flags, words):
    line = refused(*flags)
    assert all(word in line for word in words), line


def test_a_missing_and_an_empty_model_folder(refused, tmp_path):
    assert f"{tmp_path / 'nowhere'}: no such folder" in refused("--model", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'} is empty" in refused("--model", tmp_path / "empty")


@pytest.fixture
def model(v_checkpoint, tmp_path):
    """A copy of the tiny checkpoint that a test may damage."""
    return shutil.copytree(v_checkpoint, tmp_path / "model")


def weights(model, part="unet"):
    (path,) = (model / part).glob("*.safetensors")
    return path


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_model_that_lacks_a_component(refused, model, part):
    shutil.rmtree(model / part)
    line = refused("--model", model)
    assert part in line and str(model) in line


def test_a_model_of_pickles_only(refused, model):
    for part in ("unet", "vae", "text_encoder"):
        weights(model, part).rename((model / part) / "diffusion_pytorch_model.bin")
    assert "only pickles" in refused("--model", model)


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_truncated_weights(refused, model, size):
    path = weights(model)
    data = path.read_bytes()
    path.write_bytes(data[:size])
    assert str(path) in refused("--model", model)


def test_weights_of_another_shape(refused, model):
    path = weights(model)
    tensors = load_file(path)
    tensors["conv_in.weight"] = tensors["conv_in.weight"][:, :3].copy()
    save_file(tensors, path)
    line = refused("--model", model)
    assert str(path) in line and "conv_in.weight" in line and "[16, 3, 3, 3]" in line and "[16, 4, 3, 3]" in line


@pytest.mark.parametrize("content", ["", "{", "[]", '{"_class_name": "FluxPipeline"}'])
def test_another_or_broken_model_index(refused, model, content):
    (model / "model_index.json").write_text(content)
    assert str(model) in refused("--model", model)


def test_output_that_is_a_file_or_in_one(script, tmp_path):
    (tmp_path / "file").write_text("kept")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        done = script("build.py", "--model", "random:tiny", "--output-dir", output)
        assert done.returncode == 2 and f"--output-dir {output}" in done.stderr and done.stderr.count("\n") == 1
    assert (tmp_path / "file").read_text() == "kept" and os.listdir(tmp_path) == ["file"]


def test_a_foreign_folder_is_not_overwritten(script, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("years of work")
    done = script("build.py", "--model", "random:tiny", "--output-dir", tmp_path / "thesis")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "is not empty" in done.stderr
    assert os.listdir(tmp_path) == ["thesis"] and os.listdir(tmp_path / "thesis") == ["chapter"]


DRIVER = """
import sys, types
sys.path.insert(0, {root!r})
sys.argv = ["build.py"] + {flags!r}
import compiler.builder, compiler.destination, runtime.engine
from utils.errors import run_script
import build

# Only the text encoder is compiled, so that the driver is quick.
every = compiler.builder.components
compiler.builder.components = lambda *arguments: every(*arguments)[:1]
{fault}
run_script(build.main)
"""
NOISE = """
call = runtime.engine.Engine.__call__
runtime.engine.Engine.__call__ = lambda self, *inputs: call(self, *inputs) * 1.01
"""
NAN = """
call = runtime.engine.Engine.__call__
runtime.engine.Engine.__call__ = lambda self, *inputs: call(self, *inputs) * float("nan")
"""
SIGINT = """
import os, signal, time
compile_ = compiler.destination.compile_component
def interrupted(*arguments):
    result = compile_(*arguments)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)
    return result
compiler.destination.compile_component = interrupted
"""


def drive(tmp_path, output, fault):
    """Run build.py's main with a fault injected, in a process of its own."""
    driver = tmp_path / "driver.py"
    flags = ["--model", "random:tiny", "--output-dir", str(output), "--enable-cache", "0"]
    driver.write_text(DRIVER.format(root=str(ROOT), flags=flags, fault=fault))
    return subprocess.run([sys.executable, driver], cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture
def outputs(tmp_path):
    folder = tmp_path / "outputs"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(("fault", "psnr"), [(NOISE, r"[3-5]\d\.\d"), (NAN, "-inf")])
def test_a_build_that_fails_parity_saves_nothing(tmp_path, outputs, fault, psnr):
    done = drive(tmp_path, outputs / "artifact", fault)
    assert done.returncode == 2, done.stderr
    pattern = (
        rf"error: text_encoder\.encode: PSNR {psnr} dB against PyTorch is below the floor of 60 dB; nothing was saved"
    )
    assert re.fullmatch(pattern, done.stderr.strip()), done.stderr
    assert os.listdir(outputs) == []


def test_an_artifact_survives_a_failed_and_an_interrupted_build(tmp_path, outputs):
    artifact = outputs / "artifact"
    assert drive(tmp_path, artifact, "").returncode == 0
    before = {path: path.read_bytes() for path in artifact.rglob("*") if path.is_file()}
    assert json.loads((artifact / "manifest.json").read_text())["components"]["text_encoder"]["psnr"]["encode"] > 60
    assert drive(tmp_path, artifact, NOISE).returncode == 2
    done = drive(tmp_path, artifact, SIGINT)
    assert done.returncode == 130 and "interrupted" in done.stderr and "Traceback" not in done.stderr
    assert {path: path.read_bytes() for path in artifact.rglob("*") if path.is_file()} == before
    assert os.listdir(outputs) == ["artifact"]
