import errno
import json
import os
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from runtime import picture
from runtime.picture import PictureInfo, parameters_text, save_picture, to_uint8
from utils.errors import UserError

INFO = PictureInfo(
    prompt="a red circle, on a blue background",
    negative_prompt="text: bad",
    steps=20,
    sampler="Euler a",
    guidance_scale=7.5,
    seed=3,
    width=16,
    height=8,
    model_name="demo",
    model_digest="0123456789abcdef",
)
PIXELS = np.arange(8 * 16 * 3, dtype=np.uint8).reshape(8, 16, 3)
SETTING = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def read_like_a1111(text):
    """Split a parameters text as the web UI does: settings last, the negative prompt from the line that names it."""
    *lines, last = text.strip().split("\n")
    values = {k: json.loads(v) if v[:1] == v[-1:] == '"' else v for k, v in SETTING.findall(last)}
    prompts = {"prompt": [], "negative": []}
    part = "prompt"
    for line in map(str.strip, lines):
        if line.startswith("Negative prompt:"):
            part, line = "negative", line[len("Negative prompt:") :].strip()
        prompts[part].append(line)
    return "\n".join(prompts["prompt"]), "\n".join(prompts["negative"]), values


def lines_stripped(text):
    return "\n".join(map(str.strip, text.strip().split("\n")))


def saved_text(info):
    with tempfile.TemporaryDirectory() as folder, Image.open(save_picture(PIXELS, Path(folder), "x.png", info)) as file:
        assert np.array_equal(np.asarray(file), PIXELS)
        return file.text["parameters"]


def test_parameters_are_the_web_uis():
    assert saved_text(INFO) == (
        "a red circle, on a blue background\nNegative prompt: text: bad\n"
        "Steps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 3, Size: 16x8, Model hash: 0123456789, Model: demo"
    )


def test_no_negative_prompt_has_no_line_and_extra_settings_follow():
    text = parameters_text(replace(INFO, prompt="", negative_prompt="", extra={"Version": "a, b"}))
    assert text.startswith("Steps: 20, ")
    assert text.endswith('Model: demo, Version: "a, b"')


PROMPTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=200).filter(
    lambda text: "Negative prompt:" not in text
)


@settings(deadline=None, max_examples=60)
@given(PROMPTS, PROMPTS, PROMPTS.filter(str.strip))
@example("Steps: 3, Sampler: none", "", 'quote " and, comma: colon\nnewline\\')
@example("first line\nsecond line, 漢字 \U0001f600", "(café:1.2)\nsecond", "модель")
def test_any_prompt_and_model_name_survive_the_file(prompt, negative, model):
    info = replace(INFO, prompt=prompt, negative_prompt=negative, model_name=model)
    read_prompt, read_negative, values = read_like_a1111(saved_text(info))
    assert read_prompt.strip() == lines_stripped(prompt)
    assert read_negative.strip() == lines_stripped(negative)
    assert values["Model"].strip() == model.strip()
    assert (values["Steps"], values["Sampler"], values["Seed"]) == ("20", "Euler a", "3")
    assert (float(values["CFG scale"]), values["Size"], values["Model hash"]) == (7.5, "16x8", "0123456789")


def test_arguments_that_are_no_utf8_and_nul_do_not_fail():
    assert saved_text(replace(INFO, prompt="a\udc80b\0c")).startswith("a?bc\n")


def test_long_seed_and_guidance_are_exact():
    _, _, values = read_like_a1111(parameters_text(replace(INFO, seed=2**64 - 1, guidance_scale=1 / 3)))
    assert int(values["Seed"]) == 2**64 - 1
    assert float(values["CFG scale"]) == 1 / 3


def test_a_given_name_is_never_taken_twice(tmp_path):
    (tmp_path / "x-1.png").write_text("somebody else's")
    names = [save_picture(PIXELS, tmp_path, "x.png", INFO).name for _ in range(3)]
    assert names == ["x.png", "x-2.png", "x-3.png"]
    assert (tmp_path / "x-1.png").read_text() == "somebody else's"
    assert sorted(os.listdir(tmp_path)) == ["x-1.png", "x-2.png", "x-3.png", "x.png"]


def test_default_names_are_number_seed_and_slug(tmp_path):
    folder = tmp_path / "new" / "folder"
    assert save_picture(PIXELS, folder, None, INFO).name == "00001-3-a-red-circle-on-a-blue-background.png"
    (folder / "00041-other.png").touch()
    (folder / "notes.txt").touch()
    assert save_picture(PIXELS, folder, None, replace(INFO, prompt="Café \U0001f600/../x\n" * 9)).name == (
        "00042-3-cafe-x-cafe-x-cafe-x-cafe-x-cafe-x-cafe.png"
    )
    assert save_picture(PIXELS, folder, None, replace(INFO, prompt="漢字", seed=2**64 - 1)).name == (
        "00043-18446744073709551615.png"
    )


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_writers_at_the_same_time_never_overwrite(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", _no_links)
    pictures = [np.full((8, 16, 3), i, np.uint8) for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda pixels: save_picture(pixels, tmp_path, "x.png", INFO), pictures))
    assert len(set(paths)) == len(pictures) == len(os.listdir(tmp_path))
    for path, pixels in zip(paths, pictures, strict=True):
        with Image.open(path) as file:
            assert np.array_equal(np.asarray(file), pixels)


def _no_links(source, target):
    raise OSError(errno.EPERM, "Operation not permitted")


def _raise(error):
    def function(*_):
        raise error

    return function


@pytest.mark.parametrize("place", ["fsync", "link", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=str)
def test_nothing_is_left_behind_when_writing_stops(tmp_path, monkeypatch, place, error):
    if place == "replace":
        monkeypatch.setattr(os, "link", _no_links)
    monkeypatch.setattr(os, place, _raise(error))
    wanted = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else UserError
    with pytest.raises(wanted) as caught:
        save_picture(PIXELS, tmp_path, "x.png", INFO)
    assert os.listdir(tmp_path) == []
    if wanted is UserError:
        assert str(tmp_path) in str(caught.value)
        assert "--output-dir" in str(caught.value)
        assert "No space left" in str(caught.value)


@pytest.mark.parametrize("below", [".", "sub"])
def test_a_file_in_the_place_of_the_folder(tmp_path, below):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match="--output-dir"):
        save_picture(PIXELS, tmp_path / "file" / below, "x.png", INFO)
    assert (tmp_path / "file").read_text() == "kept"


def test_the_file_has_the_permissions_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        path = save_picture(PIXELS, tmp_path, "x.png", INFO)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_an_unreadable_name_is_refused_without_a_trace(tmp_path):
    with pytest.raises(UserError, match="too long"):
        save_picture(PIXELS, tmp_path, "x" * 300 + ".png", INFO)
    assert os.listdir(tmp_path) == []


def test_to_uint8_rounds_and_clips():
    values = np.array([-1, 0, 0.49 / 255, 0.51 / 255, 100.49 / 255, 100.51 / 255, 254.6 / 255, 1, 2], np.float32)
    assert to_uint8(values).tolist() == [0, 0, 0, 1, 100, 101, 255, 255, 255]
    every = np.arange(256, dtype=np.float32) / 255
    assert np.array_equal(to_uint8(every), np.arange(256))
    assert picture.to_uint8(np.zeros((2, 3, 3), np.float32)).dtype == np.uint8
