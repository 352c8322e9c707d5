"""The demo's scenes and captions, and the tokenizer that is made for them."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPTokenizer

from demo.backgrounds import BACKGROUNDS
from demo.dataset import COLOURS, PLACES, RADII, RELATIONS, Scene, Thing, is_held_out, make_scene, render, vocabulary
from demo.things import THINGS
from demo.tokenizer import write_tokenizer

GREY = (150, 150, 150)


def alone(name: str, colour: str = "red", radius: float = 40, background: str = "plain", flip: bool = False) -> Scene:
    thing = Thing(name, colour, "", (64, 64), radius, COLOURS[colour], flip)
    return Scene((thing,), None, background, None, GREY, "", "0")


def pixels(scene: Scene, size: int = 64) -> np.ndarray:
    return np.asarray(render(scene, size)).astype(int)


def share_near(picture: np.ndarray, colour: tuple[int, int, int], within: int = 40) -> float:
    return float((np.abs(picture - np.array(colour)).max(axis=-1) <= within).mean())


def test_a_scene_depends_on_seed_and_index_alone():
    first = [make_scene(i, 3) for i in range(20)]
    random.seed(99)
    assert [make_scene(i, 3) for i in reversed(range(20))][::-1] == first
    assert make_scene(0, 4) != first[0]
    assert (pixels(first[0]) == pixels(make_scene(0, 3))).all()


def test_neighbouring_scenes_differ():
    assert len({make_scene(i).caption for i in range(200)}) > 150


@pytest.mark.parametrize("name", sorted(THINGS))
def test_each_thing_shows_its_colour_and_looks_like_no_other(name):
    picture = pixels(alone(name))
    assert share_near(picture, COLOURS["red"]) > 0.04
    for other in set(THINGS) - {name}:
        assert np.abs(picture - pixels(alone(other))).mean() > 2, other


@pytest.mark.parametrize("name", sorted(THINGS))
def test_each_thing_fills_its_square_and_no_more(name):
    changed = np.abs(pixels(alone(name, radius=32), 128) - np.array(GREY)).max(axis=-1) > 8
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    for low, high in ((rows[0], rows[-1]), (columns[0], columns[-1])):
        assert low >= 30 and high <= 98, "outside of its square"
    assert rows[-1] - rows[0] > 32 and columns[-1] - columns[0] > 26


def test_flipping_mirrors_a_thing():
    straight, flipped = pixels(alone("fish"), 128), pixels(alone("fish", flip=True), 128)
    assert np.abs(straight[:, ::-1] - flipped).mean() < 1.5 < np.abs(straight - flipped).mean()


@pytest.mark.parametrize("colour", sorted(COLOURS))
def test_each_colour_is_seen_on_a_thing_and_behind_one(colour):
    assert share_near(pixels(alone("square", colour)), COLOURS[colour]) > 0.2
    behind = replace(alone("square"), background_tone=COLOURS[colour])
    assert share_near(pixels(behind), COLOURS[colour]) > 0.5


def test_colours_are_far_apart():
    values = np.array(list(COLOURS.values()))
    distances = np.abs(values[:, None] - values[None]).sum(axis=-1) + 1000 * np.eye(len(values))
    assert distances.min() > 80


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_each_background_looks_like_no_other(background):
    picture = pixels(alone("circle", background=background))
    for other in set(BACKGROUNDS) - {background}:
        assert np.abs(picture - pixels(alone("circle", background=other))).mean() > 10, other


def test_edges_are_anti_aliased():
    picture = pixels(alone("circle"), 128)
    mixed = (np.abs(picture - COLOURS["red"]).max(axis=-1) > 30) & (np.abs(picture - GREY).max(axis=-1) > 30)
    assert 50 < mixed.sum() < 1500


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**9), st.sampled_from(["train", "held-out"]))
def test_a_caption_says_what_the_scene_holds(index, subset):
    scene = make_scene(index, 7, subset)
    words = scene.caption.split()
    nouns = [" ".join(w for w in (t.size, t.colour, t.name) if w) for t in scene.things]
    for noun in nouns:
        assert f"a {noun}" in scene.caption or f"an {noun}" in scene.caption
    assert [w for w in words if w in THINGS] == [t.name for t in scene.things]
    assert sum(w in COLOURS for w in words) == len(scene.things) + (scene.background_colour is not None)
    assert sum(w in RADII for w in words if w) == sum(t.size != "" for t in scene.things)
    if scene.relation is not None:
        assert f" {scene.relation} a" in scene.caption
    places = [p.split("{}")[0].strip() for p in PLACES[scene.background]]
    assert any(place in scene.caption for place in places)
    for article, noun in pairwise(words):
        if article in ("a", "an"):
            assert (article == "an") == (noun[0] in "aeiou")


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**9))
def test_a_relation_holds_in_the_picture(index):
    scene = make_scene(index, 5, pairs=1.0)
    (x0, y0), (x1, y1) = (t.centre for t in scene.things)
    reach = scene.things[0].radius
    if scene.relation == "left of":
        assert x1 - x0 > 1.9 * reach and abs(y1 - y0) < reach
    else:
        assert scene.relation in RELATIONS and abs(x1 - x0) < reach and y0 < y1
    if scene.relation == "above":
        assert y1 - y0 > 2 * reach, "there is air between them"
    if scene.relation == "on":
        assert y0 > 0


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**9))
def test_things_stay_inside_the_picture(index):
    for thing in make_scene(index, 6).things:
        for value in thing.centre:
            assert thing.radius - 8 <= value <= 128 - thing.radius + 8


def test_held_out_combinations_are_never_trained_on():
    for i in range(3000):
        scene = make_scene(i, 0)
        assert not any(is_held_out(t.name, t.colour, scene.background) for t in scene.things), scene.caption
    for i in range(300):
        scene = make_scene(i, 0, "held-out")
        assert is_held_out(scene.things[0].name, scene.things[0].colour, scene.background), scene.caption


def test_a_tenth_is_held_out_and_every_word_is_trained_on():
    table = [(t, c, b) for t in THINGS for c in COLOURS for b in BACKGROUNDS]
    held = [combination for combination in table if is_held_out(*combination)]
    assert 0.07 < len(held) / len(table) < 0.13
    seen = {(t.name, t.colour) for i in range(4000) for t in make_scene(i).things}
    assert len(seen) > 0.98 * len(THINGS) * len(COLOURS)


def test_the_shares_of_the_stream_can_be_set():
    scenes = [make_scene(i, pairs=0.0, plain=1.0, sized=0.0) for i in range(50)]
    assert all(len(s.things) == 1 and s.background == "plain" and s.things[0].size == "" for s in scenes)
    assert all(len(make_scene(i, pairs=1.0).things) == 2 for i in range(50))
    assert all(make_scene(i, plain=0.0).background != "plain" for i in range(50))
    assert all(make_scene(i, pairs=0.0, sized=1.0).things[0].size for i in range(50))


def test_sizes_are_told_apart():
    lone = [make_scene(i, pairs=0.0).things[0] for i in range(300)]
    small, middle, big = ([t.radius for t in lone if t.size == size] for size in ("small", "", "big"))
    assert max(small) + 5 < min(middle) and max(middle) + 5 < min(big)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> CLIPTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(vocabulary(), folder)
    assert {"vocab.json", "merges.txt", "tokenizer.json", "special_tokens_map.json"} <= {
        p.name for p in folder.iterdir()
    }
    return CLIPTokenizer.from_pretrained(folder)


def test_every_word_of_a_caption_is_one_token(tokenizer):
    for i in range(300):
        caption = make_scene(i).caption
        ids = tokenizer(caption).input_ids
        assert len(ids) == len(caption.split()) + 2
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == caption


def test_ids_are_padded_with_the_end_of_text(tokenizer):
    ids = tokenizer("a red circle", padding="max_length", max_length=77, truncation=True).input_ids
    assert len(ids) == tokenizer.model_max_length == 77
    assert ids[0] == tokenizer.bos_token_id == len(tokenizer) - 2
    assert ids[4:] == [tokenizer.eos_token_id] * 73 and tokenizer.eos_token_id == len(tokenizer) - 1
    assert len(tokenizer("red " * 10_000, truncation=True).input_ids) == 77


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=40))
def test_the_tokenizer_survives_any_text(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in ids[1:-1] or "<|" in text
    assert max(ids) < len(tokenizer)


def test_emoji_and_other_scripts_come_back(tokenizer):
    for text in ("🐸", "👩‍🚀", "ein ätherfrosch", "日本語", "кот"):
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")


def test_the_picture_is_rgb_of_the_size_asked_for():
    picture = render(make_scene(0), 40)
    assert isinstance(picture, Image.Image) and picture.mode == "RGB" and picture.size == (40, 40)
