"""The judge is honest: right on real scenes, at chance on wrong captions, and far away from noise."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from demo.backgrounds import BACKGROUNDS
from demo.dataset import COLOURS, RELATIONS, is_held_out, make_scene, render
from demo.judge import FEATURES, HEADS, NONE, WEIGHTS, Seen, labels, load_judge, to_input
from demo.judge_config import JudgeConfig
from demo.judge_training import alter, drawn, train
from demo.scores import (
    ASPECTS,
    balanced_scenes,
    bootstrap_mean,
    frechet,
    judge,
    marks,
    per_class,
    share,
    similarities,
)
from demo.things import THINGS
from demo.training import one_thread_an_operator
from utils.errors import UserError

SEED = 4711  # of no training
COUNT = 480


def draw(scenes):
    return np.stack([np.asarray(render(scene)) for scene in scenes])


@pytest.fixture(scope="module")
def frozen():
    return load_judge()


@pytest.fixture(scope="module")
def scenes():
    return balanced_scenes(COUNT, SEED)


@pytest.fixture(scope="module")
def pictures(scenes):
    return draw(scenes)


@pytest.fixture(scope="module")
def seen(frozen, pictures):
    return frozen.look(pictures)


@pytest.fixture(scope="module")
def real_distance(frozen, seen):
    """The distance of 96 real scenes to real scenes."""
    return frechet(seen.features[:96], frozen)["value"]


def perfect(scenes) -> Seen:
    """Return what a judge without doubt sees."""
    answers = {head: np.eye(len(HEADS[head]))[wanted] for head, wanted in labels(scenes).items()}
    return Seen(answers, np.zeros((len(scenes), FEATURES)))


def test_real_scenes_are_judged_right(seen, scenes):
    found = marks(seen, scenes)
    for aspect in ASPECTS:
        assert found[aspect].mean() >= 0.99, aspect
    assert len(found["relation"]) == COUNT / 3


def test_real_scenes_of_the_training_s_own_kind_are_judged_right(frozen):
    scenes = [make_scene(i, SEED) for i in range(COUNT // 2)]
    assert all(right.mean() >= 0.985 for right in marks(frozen.look(draw(scenes)), scenes).values())


def test_each_thing_colour_and_background_is_judged_right(seen, scenes):
    found = per_class(seen, scenes)
    assert set(found["thing"]) == set(THINGS) and set(found["colour"]) == set(COLOURS)
    assert set(found["background"]) == set(BACKGROUNDS) and set(found["relation"]) == set(RELATIONS)
    assert min(score["value"] for classes in found.values() for score in classes.values()) >= 0.9
    assert sum(score["count"] for score in found["thing"].values()) == COUNT + COUNT / 3


def test_a_slightly_soft_or_noisy_picture_is_judged_by_what_it_shows(frozen, pictures, scenes):
    pictures, scenes = pictures[:144], scenes[:144]
    soft = pictures[:, ::2, ::2].repeat(2, axis=1).repeat(2, axis=2)
    noise = np.random.default_rng(0).normal(0, 6, pictures.shape)
    noisy = np.clip(pictures + noise, 0, 255).astype(np.uint8)
    for altered in (soft, noisy):
        assert all(right.mean() >= 0.95 for right in marks(frozen.look(altered), scenes).values())


def test_with_shuffled_captions_accuracy_falls_to_chance(seen, scenes):
    """Chance is how often two captions of the list agree: 1 in 24 on a lone thing, and on few pairs.

    Colours are 10, a scenic background is 1 in 7, a relation 1 in 3 of the third that are pairs, half of them swapped.
    """
    rounds = 5
    found: dict[str, list[float]] = {aspect: [] for aspect in ASPECTS}
    similar = []
    for round_ in range(rounds):
        shuffled = [scenes[i] for i in np.random.default_rng(round_).permutation(COUNT)]
        for aspect, right in marks(seen, shuffled).items():
            found[aspect].append(right.mean())
        similar.append(similarities(seen, shuffled).mean())
    for aspect, chance in {"thing": 0.028, "colour": 0.070, "background": 0.120, "relation": 1 / 18}.items():
        count = rounds * (COUNT / 3 if aspect == "relation" else COUNT)
        tolerance = 4 * np.sqrt(chance * (1 - chance) / count)  # at most 0.032
        assert abs(np.mean(found[aspect]) - chance) <= tolerance, aspect
    assert np.mean(similar) < 0.45 < 0.95 < similarities(seen, scenes).mean()


@pytest.mark.parametrize("kind", ["uniform", "normal", "one colour"])
def test_on_noise_the_distance_explodes(frozen, real_distance, kind):
    rng = np.random.default_rng(2)
    values = {
        "uniform": lambda: rng.integers(0, 256, (96, 128, 128, 3)),
        "normal": lambda: rng.normal(128, 50, (96, 128, 128, 3)).clip(0, 255),
        "one colour": lambda: np.broadcast_to(rng.integers(0, 256, (96, 1, 1, 3)), (96, 128, 128, 3)),
    }[kind]()
    found = frechet(frozen.look(values.astype(np.uint8)).features, frozen)
    assert found["interval"][0] > 10 * real_distance


def test_the_distance_grows_with_damage(frozen, pictures, real_distance):
    rng = np.random.default_rng(3)
    found = [real_distance]
    for deviation in (25, 60, 120):
        damaged = np.clip(pictures[:96] + rng.normal(0, deviation, pictures[:96].shape), 0, 255).astype(np.uint8)
        found.append(frechet(frozen.look(damaged).features, frozen)["value"])
    assert found == sorted(found) and found[-1] > 5 * found[0]


def test_the_distance_of_gaussians_is_that_of_the_formula(frozen):
    rng = np.random.default_rng(4)
    mean, scale = rng.normal(size=FEATURES), rng.uniform(0.5, 2, FEATURES)
    known = replace(frozen, mean=np.zeros(FEATURES), covariance=np.eye(FEATURES))
    features = rng.normal(mean, scale, (4000, FEATURES))
    expected = (mean**2).sum() + ((scale - 1) ** 2).sum()  # of two diagonal covariances
    found = frechet(features, known)["value"]
    assert found == pytest.approx(expected, rel=0.03)


def test_the_interval_covers_and_shrinks(frozen):
    """In most of 24 draws the interval holds what is expected of so many pictures; four times as many halve it."""
    rng, dimensions = np.random.default_rng(5), 8
    known = replace(frozen, mean=np.zeros(dimensions), covariance=np.eye(dimensions))

    def distances(count):
        return [frechet(rng.normal(0.3, 1.2, (count, dimensions)), known) for _ in range(24)]

    few, many = distances(60), distances(240)
    for found in (few, many):
        expected = np.mean([each["value"] for each in found])
        assert sum(each["interval"][0] <= expected <= each["interval"][1] for each in found) >= 19
    widths = [np.mean([each["interval"][1] - each["interval"][0] for each in found]) for found in (few, many)]
    assert 1.5 < widths[0] / widths[1] < 3.5


def test_shares_and_means_have_intervals_that_shrink():
    assert share(np.ones(100, bool))["interval"] == pytest.approx([0.963, 1.0], abs=1e-3)  # Wilson's table
    assert share(np.arange(100) < 50)["interval"] == pytest.approx([0.4038, 0.5962], abs=1e-4)
    assert share(np.zeros(0, bool)) == {"value": None, "interval": None, "count": 0}
    values = np.random.default_rng(6).normal(1, 1, 1600)
    narrow, wide = bootstrap_mean(values)["interval"], bootstrap_mean(values[:100])["interval"]
    assert narrow[0] < 1 < narrow[1] and wide[0] < 1 < wide[1]
    assert (wide[1] - wide[0]) > 3 * (narrow[1] - narrow[0])


def test_the_captions_are_balanced_held_out_and_the_same_for_any_number():
    scenes = balanced_scenes(240, 3)
    assert balanced_scenes(50, 3) == scenes[:50]
    assert balanced_scenes(50, 4) != scenes[:50]
    first = [scene.things[0] for scene in scenes]
    assert [sum(thing.name == name for thing in first) for name in THINGS] == [10] * 24
    assert all(is_held_out(t.name, t.colour, s.background) for t, s in zip(first, scenes, strict=True))
    relations = [scene.relation for scene in scenes]
    assert [relations.count(relation) for relation in RELATIONS] == pytest.approx([80 / 3] * 3, abs=1)
    assert relations.count(None) == 160


def test_a_mark_needs_every_thing_in_its_place():
    scene = next(s for s in balanced_scenes(24, 8) if s.relation == "left of")
    assert all(right.all() for right in marks(perfect([scene]), [scene]).values())
    mirrored = replace(scene, things=scene.things[::-1])
    found = marks(perfect([mirrored]), [scene])
    assert not found["thing"].any() and not found["colour"].any(), "the wrong way round"
    assert not found["relation"].any() and found["background"].all()
    lone = replace(scene, things=scene.things[:1], relation=None)
    found = marks(perfect([lone]), [scene])
    assert not found["thing"].any() and not found["relation"].any(), "the second is missing"
    assert len(marks(perfect([lone]), [lone])["relation"]) == 0


def test_a_plain_background_needs_its_colour():
    scene = next(s for s in balanced_scenes(24, 8) if s.background == "plain")
    other = replace(scene, background_colour=next(c for c in COLOURS if c != scene.background_colour))
    assert not marks(perfect([other]), [scene])["background"].any()
    assert similarities(perfect([other]), [scene])[0] == pytest.approx(6 / 7)
    assert similarities(perfect([scene]), [scene])[0] == pytest.approx(1)


def test_the_report_can_be_written_as_json(pictures, scenes):
    found = judge(pictures[:30], scenes[:30])
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found) == {"accuracy", "per_class", "frechet", "similarity"}
    assert set(found["accuracy"]) == set(found["per_class"]) == set(ASPECTS)
    assert found["similarity"]["value"] > found["similarity"]["shuffled"]
    single = judge(pictures[:1], scenes[:1])
    assert single["accuracy"]["thing"]["count"] == 1 and single["similarity"]["shuffled"] is None


def test_pictures_of_other_sizes_are_resized(frozen, scenes):
    large = [np.asarray(render(scene, 256)) for scene in scenes[:30]]
    mixed = [*large[:15], *(np.asarray(render(scene, 192)) for scene in scenes[15:30])]
    assert all(right.mean() >= 0.9 for right in marks(frozen.look(mixed), scenes[:30]).values())


@pytest.mark.parametrize(
    "pictures",
    [np.zeros((0, 8, 8, 3), np.uint8), np.zeros((1, 8, 8, 3), np.float32), np.zeros((1, 8, 8, 4), np.uint8), []],
    ids=["none", "float", "alpha", "empty list"],
)
def test_what_is_no_picture_is_refused(frozen, pictures):
    with pytest.raises(ValueError, match="uint8"):
        frozen.look(pictures)


def test_another_number_of_scenes_is_refused(seen, scenes):
    for wrong in (scenes[:-1], scenes[:0]):
        with pytest.raises(ValueError, match="pictures for"):
            marks(seen, wrong)
        with pytest.raises(ValueError, match="pictures for"):
            similarities(seen, wrong)


def test_the_weights_are_small_half_precision_and_say_what_they_reach():
    assert WEIGHTS.stat().st_size < 2_000_000
    with safe_open(WEIGHTS, "pt") as file:
        reached = json.loads(file.metadata()["accuracy on real scenes"])
        kinds = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118 - it is no mapping
    assert all(value >= 0.99 for shares in reached.values() for value in shares.values())
    assert {kind for name, kind in kinds.items() if not name.startswith("real.")} == {torch.float16}


def test_labels_name_both_things(scenes):
    pair = next(s for s in scenes if s.relation == "on")
    found = {head: HEADS[head][values[0]] for head, values in labels([pair]).items()}
    assert [found["thing"], found["second_thing"]] == [thing.name for thing in pair.things]
    assert found["relation"] == "on" and NONE not in (found["second_thing"], found["second_colour"])


def test_weights_that_are_missing_broken_or_of_another_grammar(tmp_path):
    with pytest.raises(UserError, match="missing"):
        load_judge(tmp_path / "none.safetensors")
    broken = Path(shutil.copy(WEIGHTS, tmp_path / "broken.safetensors"))
    broken.write_bytes(broken.read_bytes()[:-100])
    with pytest.raises(UserError, match="broken or was cut short"):
        load_judge(broken)
    save_file(load_file(WEIGHTS), tmp_path / "other.safetensors", {"classes": "{}"})
    with pytest.raises(UserError, match="another grammar"):
        load_judge(tmp_path / "other.safetensors")


def test_a_judge_can_be_trained_and_frozen_anew(tmp_path, capsys):
    config = JudgeConfig(
        output=tmp_path / "judge.safetensors",
        work=tmp_path / "work",
        scenes=32,
        epochs=3,
        batch_size=8,
        num_threads=1,
        reference=8,
        check=9,
    )
    with one_thread_an_operator():  # puts the number of threads back in the end
        train(config)
    made = load_judge(config.output)
    features = made.look(draw(balanced_scenes(8, config.seed + 1))).features
    assert np.allclose(features.mean(0), made.mean, atol=1e-3)
    assert frechet(features, made)["value"] == pytest.approx(0, abs=1e-2)
    assert set(json.loads(made.metadata["accuracy on real scenes"])) == {"held-out", "all"}
    assert "held-out: thing" in capsys.readouterr().out
    assert {path.name for path in tmp_path.rglob("*.partial")} == set()
    assert drawn(config.work, 32, config.seed, 1).shape == (32, 128, 128, 3)


def test_training_scenes_are_altered_mildly_and_each_in_its_own_way(pictures):
    images = to_input(pictures[:16])
    altered = alter(images, torch.Generator().manual_seed(0))
    assert altered.shape == images.shape and altered.abs().max() <= 1
    change = (altered - images).abs().mean(dim=(1, 2, 3))
    assert 0.01 < change.mean() < 0.2 and change.std() > 0.005
