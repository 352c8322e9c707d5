"""Peers are held to what TVMERGE_HIDE_FEATURES leaves."""

from pathlib import Path

import pytest

from backends import held as module
from backends.held import held
from backends.onnxruntime import OnnxRuntime
from backends.peer import Settings
from benchmarks.workers import Worker
from utils.errors import UserError
from utils.features import HIDE

ZEN_5 = ["avx", "avx2", "avx512bf16", "avx512bw", "avx512f", "avx512vnni", "avxvnni", "fma"]
SETTINGS = Settings(
    model="random:tiny",
    dtype="float32",
    height=None,
    width=None,
    num_threads=1,
    steps=1,
    folder=Path("kept"),
    artifacts_dir=None,
)


@pytest.mark.parametrize(
    ("host", "onednn", "aten"),
    [
        ([*ZEN_5, "amxtile"], "AVX512_CORE_AMX", "avx512"),
        (ZEN_5, "AVX512_CORE_BF16", "avx512"),
        (["avx", "avx2", "avx512bw", "avx512f"], "AVX512_CORE", "avx512"),
        (["avx", "avx2", "avxvnni"], "AVX2_VNNI", "avx2"),
        (["avx", "avx2", "fma"], "AVX2", "avx2"),
        (["avx"], "AVX", "default"),
        (["sse42"], "SSE41", "default"),
    ],
)
def test_switches_follow_what_is_left(monkeypatch, host, onednn, aten):
    monkeypatch.setenv(HIDE, "amx")
    monkeypatch.setattr(module, "host_instruction_sets", lambda: host)
    assert held() == {"ONEDNN_MAX_CPU_ISA": onednn, "ATEN_CPU_CAPABILITY": aten}


def test_nothing_hidden_changes_nothing(monkeypatch):
    monkeypatch.delenv(HIDE, raising=False)
    assert held() == {}


def test_who_can_not_be_held_is_left_out(monkeypatch, tmp_path):
    monkeypatch.setenv(HIDE, "avx512")
    reason = OnnxRuntime(SETTINGS).unavailable()
    assert reason is not None and HIDE in reason


def test_an_unknown_name_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv(HIDE, "avx513")
    with pytest.raises(UserError, match="avx513"):
        Worker("serve", "eager", [], SETTINGS, tmp_path / "log")
