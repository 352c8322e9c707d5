"""--ladder and --tome-sweep: which builds they compare, and what follows from the seconds."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from fake_painter import FakeSession

from benchmarks import ladder, pictures, tome
from compiler.optimisations import OPTIMISATIONS, enabled
from runtime.quality import EQUAL


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(pictures, "PAUSE_SECONDS", 0.0)


def test_every_optimisation_is_a_rung_and_each_rung_has_one_more(tmp_path):
    assert set(ladder.ORDER) == set(OPTIMISATIONS)
    made = list(ladder.rungs(FakeSession(tmp_path)))
    on = [sum(enabled(session.settings.disable).values()) for _, session in made]
    assert on == [*range(len(OPTIMISATIONS) + 1), len(OPTIMISATIONS), len(OPTIMISATIONS)]
    (bfloat16, half), (merging, merged) = made[-2:]
    assert half.settings.dtype == merged.settings.dtype == "bfloat16" and merged.settings.tome_ratio == 0.5
    assert (bfloat16, merging) == ("bfloat16", "token merging 0.5")
    assert len({session.settings.artifact for _, session in made}) == len(made)


def test_ratios_multiply_up_and_a_rung_that_fails_is_left_out(monkeypatch, tmp_path):
    factors = {"nothing": 8.0, "layout": 4.0, "fusion": 2.0}

    def few(session):
        for name, factor in factors.items():
            made = session.variant(disable=name)
            made.factor = factor
            made.broken = {"tvm"} if name == "layout" else set()
            yield name, made

    unet = SimpleNamespace(
        parameters=SimpleNamespace(size=7), functions={"guided": SimpleNamespace(workspace=9)}, psnr={"guided": 80.0}
    )
    artifact = SimpleNamespace(manifest=SimpleNamespace(components={"unet": unet}))
    monkeypatch.setattr(ladder, "rungs", few)
    monkeypatch.setattr(ladder, "Artifact", lambda folder: artifact)
    nothing, layout, fusion = ladder.ladder(FakeSession(tmp_path), 3, 1)
    assert (nothing.ratio, nothing.step_ratio, nothing.skipped) == (1.0, 1.0, None)
    assert layout.skipped == "no luck" and layout.ratio is None
    assert fusion.ratio == fusion.step_ratio == pytest.approx(0.25, rel=1e-3), "against the last one that ran"
    assert fusion.unet_seconds == [6.003, 6.004, 6.005] and fusion.before_seconds == [24.003, 24.004, 24.005]
    assert (fusion.parameters, fusion.workspace, fusion.psnr) == (7, 9, 80.0)


def test_each_ratio_is_compared_with_none(monkeypatch, tmp_path):
    session = FakeSession(tmp_path)
    rows = list(tome.sweep(session, [0, 0.5], 2, 0, 0, tmp_path))
    found = [(row.name, row.attention, row.ratio) for row in rows]
    kinds = [("tvm", "flash"), ("tvm", "plain"), ("eager", "sdpa"), ("eager", "math")]
    assert found == [(*kind, ratio) for kind in kinds for ratio in (0, 0.5)]
    assert session.converted == [
        (("tvm",), "float32"),
        (("tvm",), "float32-tome-0.5"),
        (("tvm",), replace(session.settings, disable="flash_attention").variant),
        (("tvm",), replace(session.settings, disable="flash_attention", tome_ratio=0.5).variant),
        (("eager",), "float32"),
        (("eager",), "float32-tome-0.5"),
        (("eager",), "float32-math"),
        (("eager",), "float32-math-tome-0.5"),
    ]
    assert all(row.unet_ratio == 1 and row.psnr_to_plain == EQUAL and row.accuracy is None for row in rows)
    assert rows[0].picture == "pictures/m-72x64-picture-3-steps-tvm-float32.png" and rows[0].resolution == "72x64"


def test_the_judge_scores_ours_with_flash_attention(monkeypatch, tmp_path):
    calls = []

    def run_python(arguments, flags):
        calls.append((arguments, flags["--artifacts-dir"], flags["--num-images"]))
        accuracy = {aspect: {"value": value} for aspect, value in (("thing", 0.5), ("colour", 1.0), ("relation", None))}
        scores = {"accuracy": accuracy, "frechet": {"value": 2.0, "interval": [1.0, 3.0]}}
        flags["--json"].write_text(json.dumps(scores))

    monkeypatch.setattr(tome, "run_python", run_python)
    monkeypatch.setattr(tome, "KINDS", {("tvm", "flash"): {}, ("tvm", "plain"): {"disable": "flash_attention"}})
    session = FakeSession(tmp_path)
    flash, plain = tome.sweep(session, [0.25], 2, 0, 24, tmp_path)
    assert (flash.accuracy, flash.frechet, flash.frechet_interval) == (0.75, 2.0, [1.0, 3.0]) and plain.accuracy is None
    assert calls == [(["demo/evaluate.py"], tmp_path / "m-72x64" / "artifact-float32-tome-0.25", 24)]
