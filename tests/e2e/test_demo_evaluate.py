"""demo/evaluate.py as a user runs it, on both pipelines, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from pictures import picture_psnr
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.utils import logging

from backends.diffusers import DiffusersBackend
from demo.dataset import render
from demo.drawing import Diffusers
from demo.evaluation import evaluate, faults, table
from demo.judge import load_judge
from demo.judge_config import EvaluateConfig, JudgeConfig
from demo.scores import balanced_scenes
from demo.sheet import sheet
from demo.usual_scores import clip_score, inception_distance, load_clip
from utils.config import BaselineConfig
from utils.errors import UserError

COUNT = 9
FLAGS = ("--num-images", COUNT, "--steps", 2, "--seed", 3)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory, demo_checkpoint):
    """A CLIP model of random weights with the demo's tokenizer."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = CLIPTokenizer.from_pretrained(demo_checkpoint / "tokenizer")
    width = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {**width, **ends, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    vision = {**width, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPProcessor(CLIPImageProcessor(**size), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("scores")


@pytest.fixture(scope="module")
def of_diffusers(good_script, outputs, demo_checkpoint, clip_folder):
    files = ("--json", outputs / "new" / "diffusers.json", "--grid", outputs / "diffusers.png")
    done = good_script("demo/evaluate.py", "--model", demo_checkpoint, *FLAGS, *files, "--clip", clip_folder)
    return done, json.loads((outputs / "new" / "diffusers.json").read_text())


@pytest.fixture(scope="module")
def of_artifact(good_script, outputs, demo_artifact):
    done = good_script(
        "demo/evaluate.py", "--artifacts-dir", demo_artifact, *FLAGS, "--json", outputs / "compiled.json"
    )
    return done, json.loads((outputs / "compiled.json").read_text())


def check_scores(scores):
    for aspect, count in (("thing", COUNT), ("colour", COUNT), ("background", COUNT), ("relation", 3)):
        found = scores["accuracy"][aspect]
        low, high = found["interval"]
        assert 0 <= low <= found["value"] <= high <= 1 and found["count"] == count
        assert sum(each["count"] for each in scores["per_class"][aspect].values()) >= count
        assert scores["real_scenes"]["accuracy"][aspect]["value"] >= 2 / 3
    for name in ("frechet", "similarity"):
        assert scores[name]["interval"][0] <= scores[name]["value"] <= scores[name]["interval"][1]
    assert scores["frechet"]["value"] > scores["real_scenes"]["frechet"]["value"], "two steps are no good picture"
    assert all(value >= 0.99 for shares in scores["judge"].values() for value in shares.values())


def test_a_checkpoint_in_diffusers_is_judged(of_diffusers, outputs):
    done, scores = of_diffusers
    check_scores(scores)
    asked = {"pipeline": "diffusers", "num_images": COUNT, "steps": 2, "guidance_scale": 5.0, "seed": 3}
    assert {key: scores[key] for key in asked} == asked
    assert scores["scheduler"] == "ddim" and scores["model_digest"] and scores["model"] == "demo"
    assert 0 <= scores["clip_score"] <= 100 and "fid" not in scores
    for word in ("thing", "colour", "background", "relation", "similarity", "frechet", "clip_score"):
        assert f"\n{word} " in done.stdout
    with Image.open(outputs / "diffusers.png") as grid:
        assert grid.format == "PNG" and grid.width > 8 * 128 and grid.height > 2 * 128
    assert {path.name for path in outputs.rglob("*.partial")} == set()


def test_an_artifact_is_judged_the_same(of_artifact, of_diffusers):
    ours, theirs = of_artifact[1], of_diffusers[1]
    check_scores(ours)
    assert ours["pipeline"] == "compiled" and "clip_score" not in ours
    assert ours["real_scenes"] == theirs["real_scenes"], "the same captions"
    assert ours["frechet"]["value"] == pytest.approx(theirs["frechet"]["value"], rel=0.02)
    assert ours["similarity"]["value"] == pytest.approx(theirs["similarity"]["value"], abs=0.01)


@pytest.mark.parametrize(("label", "guidance"), [("euler-ancestral", 5.0), ("ddim", 1.0)])
def test_pictures_drawn_together_are_those_drawn_alone(label, guidance):
    shared = {"model": "random:tiny", "steps": 2, "guidance_scale": guidance, "scheduler_label": label}
    alone = DiffusersBackend.load(BaselineConfig(**shared, num_threads=1))
    together = Diffusers(EvaluateConfig(**shared, num_threads=1), "random:tiny")
    captions = ["a red circle", "a blue square on the beach", "", "a cat"] * 3
    drawn = list(together.draw(captions, range(12)))
    assert len(drawn) == 12
    for i in (0, 9):
        expected = alone.generate(captions[i], "", i).picture
        assert picture_psnr(drawn[i].astype(float), expected.astype(float)) > 40
    assert picture_psnr(drawn[0].astype(float), drawn[1].astype(float)) < 30


def test_a_perfect_model_has_no_faults_and_the_sheet_shows_it():
    scenes = balanced_scenes(3, 9)
    frozen = load_judge()
    pictures = [np.asarray(render(scene)) for scene in scenes]
    assert faults(frozen.look(pictures), scenes) == ["", "", ""]
    swapped = faults(frozen.look(pictures[::-1]), scenes)
    assert "thing" in swapped[0] and swapped[1] == ""
    drawn = np.asarray(sheet(pictures, [scene.caption for scene in scenes], swapped, 2)).astype(int)
    red, green = (drawn[..., a] - drawn[..., b] > 100 for a, b in ((0, 1), (1, 0)))
    assert red[10:100, 4].all() and not green[10:100, 4].any() and green[10:100, 144].all()


def test_the_table_names_weak_classes_and_says_none_where_nothing_was_asked():
    def score(value):
        return {"value": value, "interval": None if value is None else [value, value], "count": 4}

    parts = {name: score(0.5) for name in ("thing", "colour", "background")} | {"relation": score(None)}
    result = {"num_images": 4, "model": "m", "pipeline": "p", "scheduler": "s", "steps": 2, "guidance_scale": 5.0}
    result |= {"seed": 0, "accuracy": parts, "per_class": {"thing": {"cat": score(0.25), "dog": score(1.0)}}}
    result |= {"real_scenes": {"accuracy": parts, "frechet": score(1.0), "similarity": score(1.0)}, "fid": 12.5}
    text = table(result | {"frechet": score(7.0), "similarity": score(0.5)})
    assert "cat 25 % of 4" in text and "dog" not in text and "none" in text and "12.5" in text


REFUSED = {
    "--num-images must be from 1": {"model": "random:tiny", "num_images": 0},
    "--num-images must be from 1 ": {"model": "random:tiny", "num_images": -5},
    "--steps must be from 1": {"model": "random:tiny", "steps": 0},
    "--guidance-scale must be": {"model": "random:tiny", "guidance_scale": float("nan")},
    "--seed must be from 0": {"model": "random:tiny", "seed": -1},
    "--num-threads must be from 1": {"model": "random:tiny", "num_threads": 0},
    "give either --artifacts-dir DIR or --model DIR": {},
    "give either --artifacts-dir DIR or --model DIR, ": {"model": "random:tiny", "artifacts_dir": "x"},
    "must end in .json": {"model": "random:tiny", "json": "scores.txt"},
    "must end in .png": {"model": "random:tiny", "grid": "grid.jpg"},
    "--inception .*no such file": {"model": "random:tiny", "inception": "missing.pth"},
    "--clip .*no such folder": {"model": "random:tiny", "clip": "missing"},
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_input_is_one_line(message, tmp_path):
    paths = ("artifacts_dir", "json", "grid", "inception", "clip")
    flags = {key: tmp_path / value if key in paths else value for key, value in REFUSED[message].items()}
    with pytest.raises(UserError, match=message) as refused:
        EvaluateConfig(**flags)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"model": "missing"}, "missing: no such folder"),
        ({"artifacts_dir": "missing"}, "--artifacts-dir .*missing: no manifest.json there"),
        ({"model": "random:tiny", "scheduler_label": "eular"}, "--scheduler-label 'eular' is unknown"),
    ],
    ids=["model", "artifact", "sampler"],
)
def test_what_is_missing_is_told_before_a_picture_is_drawn(flags, message, tmp_path):
    flags = {
        key: tmp_path / value if key == "artifacts_dir" else str(tmp_path / value) if value == "missing" else value
        for key, value in flags.items()
    }
    with pytest.raises(UserError, match=message):
        evaluate(EvaluateConfig(**flags, json=tmp_path / "scores.json"))
    assert not (tmp_path / "scores.json").exists()


def test_n_of_0_is_refused_by_the_script(script):
    done = script("demo/evaluate.py", "--model", "random:tiny", "--num-images", 0)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --num-images must be from 1 to 100000, not 0\n"


def test_a_json_path_that_is_a_folder_or_inside_a_file(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.json").mkdir()
    for path in (tmp_path / "file" / "scores.json", tmp_path / "folder.json"):
        with pytest.raises(UserError, match="--json"):
            EvaluateConfig(model="random:tiny", json=path)


@pytest.mark.parametrize("flags", [{"scenes": 0}, {"epochs": 0}, {"learning_rate": 0.0}, {"scenes": 8, "check": 0}])
def test_a_judge_can_t_be_trained_on_nothing(flags):
    with pytest.raises(UserError, match="--"):
        JudgeConfig(**flags)


@pytest.mark.parametrize(
    ("package", "flag"), [("torchmetrics", "--inception and --clip"), ("torch_fidelity", "--inception")]
)
def test_a_package_that_is_missing_is_named(monkeypatch, tmp_path, package, flag):
    weights = tmp_path / "inception.pth"
    weights.touch()
    find = "demo.usual_scores.importlib.util.find_spec"
    monkeypatch.setattr(find, lambda name: None if name == package else object())
    with pytest.raises(UserError, match=rf"{flag}: the package {package.replace('_', '-')} is not installed; pip"):
        evaluate(EvaluateConfig(model="random:tiny", inception=weights))


def test_the_usual_fid_is_0_for_the_same_pictures_and_large_for_others():
    class Means(torch.nn.Module):
        num_features = 3

        def forward(self, images):
            return images.float().mean(dim=(2, 3))

    rng = np.random.default_rng(0)
    pictures = list(rng.integers(0, 100, (40, 8, 8, 3), np.uint8))
    assert inception_distance(pictures, pictures, Means()) == pytest.approx(0, abs=1e-3)
    brighter = [picture + np.uint8(100) for picture in pictures]
    assert inception_distance(brighter, pictures, Means()) == pytest.approx(3 * 100**2, rel=1e-3)


def test_the_usual_clip_score_is_the_mean_cosine(clip_folder):
    logging.set_verbosity_error()
    clip = load_clip(clip_folder)
    pictures = list(np.random.default_rng(1).integers(0, 256, (35, 32, 32, 3), np.uint8))
    captions = [f"a {colour} cat" for colour in ("red", "blue", "green", "white", "black")] * 7
    processed = clip[1](text=captions, images=pictures, return_tensors="pt", padding=True)
    with torch.no_grad():
        found = clip[0].model(**processed)
    cosines = torch.nn.functional.cosine_similarity(found.image_embeds, found.text_embeds)
    assert cosines.mean() > 0.01
    assert clip_score(pictures, captions, clip) == pytest.approx(100 * cosines.mean().item(), abs=1e-3)


def test_a_folder_that_holds_no_clip_model_is_one_line(tmp_path, clip_folder):
    for folder in (tmp_path, clip_folder.parent):
        with pytest.raises(UserError, match=r"--clip .*no CLIP model in safetensors"):
            load_clip(folder)
