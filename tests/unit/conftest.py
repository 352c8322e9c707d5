import shutil
import sys
import types
from pathlib import Path

import pytest
from fake_artifact import FakeEngine, fake_engine_module

import runtime
from models.random_checkpoint import random_checkpoint, save


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random:tiny; tests only read it."""
    folder = tmp_path_factory.mktemp("original") / "tiny-model"
    save(random_checkpoint("tiny", 1), folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy of ``original`` that the test may change."""
    return shutil.copytree(original, tmp_path / "tiny-model")


@pytest.fixture
def fake_engines(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Put fake engines in the place of runtime.engine, and forget what they did before."""
    module = fake_engine_module()
    monkeypatch.setitem(sys.modules, "runtime.engine", module)
    monkeypatch.setattr(runtime, "engine", module, raising=False)
    monkeypatch.setattr(FakeEngine, "calls", [])
    monkeypatch.setattr(FakeEngine, "bound", [])
    monkeypatch.setattr(FakeEngine, "break_at", None)
    monkeypatch.setattr(FakeEngine, "on_break", None)
    return module
