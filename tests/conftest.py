"""Artifacts and checkpoints that many tests share, each made once a session by the scripts themselves."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

os.environ.setdefault("TVM_BIND_THREADS", "0")  # as runtime.engine, for tests that run kernels without it
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


class Made:
    """Folders that the first process of the tests to ask for them makes; the others wait. Tests only read them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, name: str, *command: object, flag: str = "--output-dir") -> Path:
        """Return the folder that ``command`` makes where ``flag`` says."""
        folder = self.root / name
        with FileLock(self.root / f"{name}.lock"):
            if not folder.is_dir():
                must_run(*command, flag, folder)
        return folder


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Made:
    own = tmp_path_factory.getbasetemp()
    return Made(own if worker_id == "master" else own.parent)


@pytest.fixture(scope="session")
def v_checkpoint(made: Made) -> Path:
    """A tiny checkpoint of SD 2's layout, v-prediction."""
    return made("tiny-v", "-m", "models.random_checkpoint", "--arch", "tiny-sd2", flag="--output")


@pytest.fixture(scope="session")
def tiny_artifact(made: Made) -> Path:
    """random:tiny at its own size, 64x64."""
    return made("tiny-artifact", "build.py", "--model", "random:tiny")


@pytest.fixture(scope="session")
def v_artifact(made: Made, v_checkpoint: Path) -> Path:
    return made("v-artifact", "build.py", "--model", v_checkpoint)


@pytest.fixture(scope="session")
def v_odd_artifact(made: Made, v_checkpoint: Path) -> Path:
    """The same at 72x104, a latent of 9x13, odd at every level; with the IR of each pass."""
    return made("v-odd-artifact", "build.py", "--model", v_checkpoint, "--height", 72, "--width", 104, "--enable-debug")


@pytest.fixture(scope="session")
def demo_checkpoint() -> Path:
    assert (DEMO / "model_index.json").is_file(), f"{DEMO} is missing: the demo model belongs to the repository"
    return DEMO


@pytest.fixture(scope="session")
def demo_artifact(made: Made, demo_checkpoint: Path) -> Path:
    return made("demo-artifact", "build.py")  # the demo model is build.py's default
