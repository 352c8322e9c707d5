import sys
import types

import pytest
from fake_artifact import FakeEngine, fake_engine_module

import runtime


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
