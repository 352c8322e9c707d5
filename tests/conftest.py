"""Artifacts and checkpoints that many tests share, each made once a session by the scripts themselves."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "demo" / "checkpoint"
TIMEOUT = 600  # seconds; a hung script fails instead of hanging the tests

Script = Callable[..., subprocess.CompletedProcess]


def run_script(*arguments: object, timeout: float = TIMEOUT, **options: object) -> subprocess.CompletedProcess:
    """Run a Python script or ``-m module`` in the repository's root, as a user does, and capture what it prints."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, **options)


def must_run(*arguments: object, **options: object) -> subprocess.CompletedProcess:
    """Run a script that has to succeed."""
    done = run_script(*arguments, **options)
    assert done.returncode == 0, f"{arguments} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep what tests build out of the user's cache, and the other way round."""
    os.environ["TVMERGE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    return Path(os.environ["TVMERGE_CACHE"])


@pytest.fixture(scope="session")
def script() -> Script:
    return run_script


@pytest.fixture(scope="session")
def good_script() -> Script:
    return must_run


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="session")
def v_checkpoint(shared: Path) -> Path:
    """A tiny checkpoint of SD 2's layout, v-prediction."""
    folder = shared / "tiny-v"
    must_run("-m", "models.random_checkpoint", "--arch", "tiny-sd2", "--output", folder)
    return folder


@pytest.fixture(scope="session")
def tiny_artifact(shared: Path) -> Path:
    """random:tiny at its own size, 64x64. Tests only read it; they copy what they change."""
    must_run("build.py", "--model", "random:tiny", "--output-dir", shared / "tiny-artifact")
    return shared / "tiny-artifact"


@pytest.fixture(scope="session")
def v_artifact(shared: Path, v_checkpoint: Path) -> Path:
    must_run("build.py", "--model", v_checkpoint, "--output-dir", shared / "v-artifact")
    return shared / "v-artifact"


@pytest.fixture(scope="session")
def v_odd_artifact(shared: Path, v_checkpoint: Path) -> Path:
    """The same at 72x104, a latent of 9x13, odd at every level; with the IR of each pass."""
    folder = shared / "v-odd-artifact"
    must_run(
        "build.py", "--model", v_checkpoint, "--height", 72, "--width", 104, "--output-dir", folder, "--enable-debug"
    )
    return folder


@pytest.fixture(scope="session")
def demo_checkpoint() -> Path:
    assert (DEMO / "model_index.json").is_file(), f"{DEMO} is missing: the demo model belongs to the repository"
    return DEMO


@pytest.fixture(scope="session")
def demo_artifact(shared: Path, demo_checkpoint: Path) -> Path:
    must_run("build.py", "--output-dir", shared / "demo-artifact")  # the demo model is build.py's default
    return shared / "demo-artifact"
