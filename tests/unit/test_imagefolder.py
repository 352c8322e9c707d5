"""A user's pictures: what is read, how it is fitted, and what is named and left out."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image

from demo.imagefolder import SHOWN, read_images
from utils.errors import UserError

RED, BLUE = (220, 30, 30), (30, 30, 220)


def draw(path, size=(16, 16), colour=RED, caption=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")


def metadata(folder, *entries):
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_captions_from_texts_and_from_metadata(tmp_path, capsys):
    draw(tmp_path / "a.png", caption="\ufeff a red\n square \n")
    draw(tmp_path / "b.jpg", colour=BLUE)
    draw(tmp_path / "deeper" / "c.webp", lossless=True)
    draw(tmp_path / "deeper" / "d.bmp", colour=BLUE)
    draw(tmp_path / "e.v2.png", caption="its text comes first \N{SNOWMAN}")
    entries = [{"file_name": "b.jpg", "text": "a  blue square", "more": 1}, "", {"file_name": "e.v2.png", "text": "no"}]
    metadata(tmp_path, *entries, {"file_name": "deeper/c.webp", "text": "c\u2028from above"})
    metadata(tmp_path / "deeper", {"file_name": "./d.bmp", "text": "d from beside"})
    (tmp_path / ".hidden").write_text("passed over")
    pixels, captions = read_images(tmp_path, 16)
    assert captions == [
        "a red square",
        "a blue square",
        "c from above",
        "d from beside",
        "its text comes first \N{SNOWMAN}",
    ]
    assert pixels.shape == (5, 16, 16, 3) and pixels.dtype == np.uint8
    expected = np.array([RED, BLUE, RED, BLUE, RED])
    assert (abs(pixels.astype(int) - expected[:, None, None]) <= 3).all()
    assert capsys.readouterr().err == ""


def test_the_nearer_metadata_decides(tmp_path):
    draw(tmp_path / "deeper" / "a.png")
    metadata(tmp_path, {"file_name": "deeper/a.png", "text": "far"})
    metadata(tmp_path / "deeper", {"file_name": "a.png", "text": "near"})
    assert read_images(tmp_path, 8)[1] == ["near"]


def test_other_sizes_are_scaled_and_cropped_in_the_middle(tmp_path, capsys):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 255  # the middle square of a picture three times as wide as high
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide.transpose(1, 0, 2)).save(tmp_path / "high.png")
    draw(tmp_path / "thread.png", (500, 1))
    draw(tmp_path / "fits.png")
    metadata(tmp_path, *({"file_name": f"{name}.png", "text": name} for name in ("wide", "high", "thread", "fits")))
    pixels, captions = read_images(tmp_path, 16)
    found = dict(zip(captions, pixels, strict=True))
    assert (found["wide"] > 240).all() and (found["high"] > 240).all() and (found["thread"] == RED).all()
    assert "resized 3 of 4 pictures to 16x16, 1 of them enlarged" in capsys.readouterr().err


def test_modes_become_rgb(tmp_path):
    ramp = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    clear = Image.new("RGBA", (8, 8), (*BLUE, 0))
    palette = Image.new("RGB", (8, 8), RED).quantize(4)
    pictures = {
        "16-bit.png": Image.fromarray(ramp),
        "clear.png": clear,
        "cmyk.jpg": Image.new("CMYK", (8, 8), (0, 255, 255, 0)),
        "frames.gif": Image.new("P", (8, 8)),
        "grey.png": Image.new("L", (8, 8), 77),
        "palette.png": palette,
    }
    for name, picture in pictures.items():
        picture.save(tmp_path / name)
    metadata(tmp_path, *({"file_name": name, "text": name} for name in pictures))
    found = dict(zip(pictures, read_images(tmp_path, 8)[0].astype(int), strict=True))
    assert (abs(found["16-bit.png"][..., 0] - ramp / 257) <= 1).all()
    assert (found["clear.png"] == 255).all() and (found["grey.png"] == 77).all()
    assert (abs(found["palette.png"] - RED) <= 3).all()
    assert found["cmyk.jpg"][..., 0].min() > 240 and found["cmyk.jpg"][..., 1:].max() < 40


def test_a_camera_held_upright_and_a_large_photograph(tmp_path):
    photo = np.zeros((1200, 1200, 3), np.uint8)
    photo[:600] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # held upside down
    Image.fromarray(photo).save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "a.txt").write_text("a")
    (picture,), _ = read_images(tmp_path, 16)
    assert (picture[:7] < 10).all() and (picture[9:] > 245).all()


def bad_files(folder):
    """Write one of each kind of file that can't be used; returns their names and a word of what is said."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for name in ("cut.png", "cut.jpg"):
        Image.fromarray(noise).save(folder / name)
        (folder / name).write_bytes((folder / name).read_bytes()[:1500])
    (folder / "empty.png").write_bytes(b"")
    (folder / "notes.md").write_text("no picture")
    Image.fromarray(noise).save(folder / "bomb.png")
    header = bytearray((folder / "bomb.png").read_bytes())
    header[16:24] = (100_000).to_bytes(4, "big") * 2  # a picture of 10 gigapixels, it says
    (folder / "bomb.png").write_bytes(header)
    draw(folder / "mute.png")
    draw(folder / "blank.png", caption=" \n")
    draw(folder / "latin.png")
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "lonely.txt").write_text("no picture of this name")
    for name in ("cut", "empty", "bomb"):
        (folder / f"{name}.txt").write_text("a caption")
    return {
        "cut.png": "broken",
        "cut.jpg": "broken",
        "empty.png": "no picture",
        "notes.md": "no picture",
        "bomb.png": "broken",
        "mute.png": "no caption",
        "blank.png": "is empty",
        "latin.png": "no UTF-8",
        "lonely.txt": "no picture of this name",
    }


def test_what_cannot_be_used_is_named_and_skipped(tmp_path, capsys):
    expected = bad_files(tmp_path)
    draw(tmp_path / "good.png", caption="good")
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    (tmp_path / "folder.png").mkdir()
    pixels, captions = read_images(tmp_path, 16)
    assert captions == ["good"] and len(pixels) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(expected)
    for name, word in expected.items():
        (line,) = [line for line in lines if f"{tmp_path / name}: " in line]
        assert line.startswith("skipped ") and word in line, line


def test_lines_of_metadata_that_say_nothing_are_named(tmp_path, capsys):
    draw(tmp_path / "good.png")
    bad = ["{", "[1]", {"file_name": "good.png"}, {"text": "x"}, {"file_name": "good.png", "text": 3}]
    bad += [{"file_name": "gone.png", "text": "x"}, {"file_name": "../good.png", "text": "x"}, "[" * 100_000]
    metadata(tmp_path, *bad, {"file_name": "good.png", "text": "good"})
    assert read_images(tmp_path, 16)[1] == ["good"]
    lines = capsys.readouterr().err.splitlines()
    assert [f"line {number}:" in line for number, line in enumerate(lines, 1)] == [True] * len(bad)
    assert "gone.png" in lines[5] and "file_name and text" in lines[2]


def test_many_faults_are_counted(tmp_path, capsys):
    for index in range(SHOWN + 7):
        (tmp_path / f"{index}.pdf").write_text("x")
    draw(tmp_path / "good.png", caption="good")
    read_images(tmp_path, 16)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == SHOWN + 1 and lines[-1] == "skipped 7 more"


def test_nothing_to_use_is_refused_in_a_line_that_helps(tmp_path):
    for folder, words in ((tmp_path / "none", "no such folder"), (tmp_path, "it is empty")):
        with pytest.raises(UserError, match=words) as error:
            read_images(folder, 16)
        assert str(folder) in str(error.value) and "--images" in str(error.value)
    bad_files(tmp_path)
    with pytest.raises(UserError, match=r"none of its \d+ files.*NAME\.txt.*metadata\.jsonl"):
        read_images(tmp_path, 16)
