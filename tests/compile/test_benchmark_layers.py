"""--attention and --winograd on a tiny UNet: which layers are found, and what each way of computing them is."""

import statistics
from collections import Counter
from pathlib import Path

import pytest
from small_component import CPU

from backends.peer import Settings
from benchmarks import layers
from benchmarks.layers import AttentionLayer, ConvLayer, attention_rows, unet_layers, winograd_rows
from benchmarks.session import Session
from models.random_checkpoint import random_checkpoint


@pytest.fixture
def session(tmp_path):
    common = {"model": "random:tiny", "dtype": "float32", "num_threads": 1, "steps": 2, "artifacts_dir": None}
    return Session(Settings(**common, height=64, width=72, folder=tmp_path), tmp_path)


def test_the_layers_are_those_of_the_config(session):
    attention, convolutions = unet_layers(session)
    config = random_checkpoint("tiny").unet.config
    assert all(layer.batch == 2 for layer in (*attention, *convolutions)), "the UNet with guidance"
    assert {layer.keys for layer in attention if layer.queries != layer.keys} == {77}
    assert any(layer.queries == layer.keys for layer in attention)
    first = ConvLayer(2, config.in_channels, config.block_out_channels[0], 8, 9)
    assert convolutions[first] == 1 and sum(convolutions.values()) > 10


def test_attention_in_three_ways(session, monkeypatch):
    layer = AttentionLayer(2, 2, 70, 33, 16)
    monkeypatch.setattr(layers, "unet_layers", lambda _: (Counter({layer: 3}), Counter()))
    plain, softmax, flash = attention_rows(session, 2)
    assert (plain.method, softmax.method, flash.method) == ("plain", "softmax", "flash")
    assert all(row.calls == 3 and len(row.seconds) == 2 and row.psnr > 90 for row in (plain, softmax, flash))
    scores = 4 * 2 * 2 * 70 * 33
    assert plain.memory >= scores and softmax.memory >= scores > flash.memory
    assert flash.gflops == pytest.approx(4e-9 * 2 * 2 * 70 * 33 * 16 / statistics.median(flash.seconds))


def test_convolutions_by_every_output_tile(session, monkeypatch):
    panel = CPU.machine.panel
    layer, odd = ConvLayer(3, panel, panel, 11, 9), ConvLayer(1, 3, panel, 8, 8)
    monkeypatch.setattr(layers, "unet_layers", lambda _: (Counter(), Counter({layer: 2, odd: 1})))
    found = {row.method: row for row in winograd_rows(session, 2)}
    assert set(found) - {"tiles", "tiles 2"} == {"direct", "2", "4", "6", "8"}
    assert found["direct"].gflop == pytest.approx(6e-9 * panel * panel * 11 * 9 * 9)
    assert found["4"].gflop == pytest.approx(6e-9 * panel * panel * 3 * 3 * 36)
    assert ("tiles 2" in found) == ("tiles" in found)
    if "tiles" in found:
        assert found["tiles 2"].gflop == found["2"].gflop and min(found["tiles"].psnr, found["tiles 2"].psnr) > 90
    errors = [found[method].psnr for method in ("direct", "2", "4", "6", "8")]
    direct, *tiles = errors
    assert tiles == sorted(tiles, reverse=True) and min(direct, tiles[0]) > 130 and tiles[-1] < 100, (
        "larger tiles, less exact"
    )


def test_nothing_is_left_behind(session, monkeypatch):
    monkeypatch.setattr(layers, "unet_layers", lambda _: (Counter({AttentionLayer(1, 1, 8, 8, 16): 1}), Counter()))
    before = set(Path(layers.tempfile.gettempdir()).iterdir())
    assert len(list(attention_rows(session, 1))) == 3
    left = {path for path in set(Path(layers.tempfile.gettempdir()).iterdir()) - before if "tmp" in path.name}
    assert not any((path / "flash").exists() for path in left if path.is_dir())
