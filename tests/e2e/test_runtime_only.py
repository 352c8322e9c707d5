"""Inference needs no torch: where only requirements-runtime.txt is installed it runs, and its picture is the same."""

import subprocess
import sys

import pytest
from pictures import read

from utils.config import ROOT

HEAVY = ("torch", "diffusers", "transformers", "tomesd")


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of a new environment with the runtime's requirements."""
    folder = tmp_path_factory.mktemp("runtime") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    interpreter = folder / "bin" / "python"
    install = [interpreter, "-m", "pip", "install", "--quiet", "-r", ROOT / "requirements-runtime.txt"]
    done = subprocess.run(install, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return interpreter


def test_nothing_heavy_is_installed(python):
    find = f"import importlib.util; print([n for n in {HEAVY!r} if importlib.util.find_spec(n)])"
    done = subprocess.run([python, "-c", find], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_inference_runs_there(python, good_script, tiny_artifact, tmp_path):
    flags = ["--artifacts-dir", tiny_artifact, "--steps", "3", "--seed", "5", "--prompt", "a red circle"]
    command = [*map(str, ["inference.py", *flags, "--output-dir", tmp_path, "--output-image"])]
    subprocess.run([python, *command, "bare.png"], cwd=ROOT, check=True, timeout=300)
    good_script(*command, "full.png")
    assert read(tmp_path / "bare.png").std() > 8
    assert (read(tmp_path / "bare.png") == read(tmp_path / "full.png")).all()


def test_importing_the_runtime_brings_in_nothing_heavy():
    """Where torch is installed TVM would import it; inference.py keeps it out."""
    check = (
        "import sys; sys.modules.setdefault('torch', None); import runtime.run, runtime.pipeline, runtime.engine; "
        f"print([n for n in {HEAVY!r} if sys.modules.get(n)])"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
