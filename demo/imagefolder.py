"""A user's own pictures with captions, in the imagefolder convention, checked before anything is trained on them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from utils.errors import UserError
from utils.progress import progress

METADATA = "metadata.jsonl"
SHOWN = 20  # files named one by one; more are counted
HOW = f"put NAME.txt beside each NAME.png, or a {METADATA} with file_name and text"


class _Skip(Exception):
    """Why a file is left out."""


def read_images(folder: Path, side: int) -> tuple[np.ndarray, list[str]]:
    """Read every picture of ``folder`` and its subfolders that has a caption.

    The caption of ``NAME.png`` is the text of ``NAME.txt`` beside it, else the ``text`` of the line in a
    ``metadata.jsonl``, in its folder or above, whose ``file_name`` is the picture's path from there. What is no
    picture, is broken or has no caption is named on stderr and left out; hidden files are passed over.

    Args:
        folder: where pictures of any size and mode are.
        side: width and height in pixels that each is scaled and centre-cropped to. Transparent parts turn white.

    Returns:
        Pictures as uint8 [N,side,side,3], and for each its caption on one line.

    Raises:
        UserError: the folder is missing, or nothing in it can be used.
    """
    if not folder.is_dir():
        raise UserError(f"--images {folder}: no such folder; give one of pictures and captions")
    files = _files(folder)
    skipped: list[str] = []
    told = _metadata(files, skipped)
    pictures = [path for path in files if path.name != METADATA and path.suffix.lower() != ".txt"]
    pixels, captions, sizes = [], [], []
    for path in progress(pictures, "pictures"):
        try:
            picture, size = _open(path, side)
            captions.append(_caption(path, told))
        except _Skip as reason:
            skipped.append(f"{path}: {reason}")
        else:
            pixels.append(picture)
            sizes.append(size)
    _report(skipped, sizes, side)
    if not pixels:
        found = f"none of its {len(files)} files is a picture with a caption" if files else "it is empty"
        raise UserError(f"--images {folder}: {found}; {HOW}")
    return np.stack(pixels), captions


def _files(folder: Path) -> list[Path]:
    """Return the files under ``folder``, in order, without those that are hidden or in a hidden folder."""
    visible = (p for p in folder.rglob("*") if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    return sorted(path for path in visible if path.is_file())


def _metadata(files: Sequence[Path], skipped: list[str]) -> dict[Path, str]:
    """Return the captions that metadata files tell, by picture, and tell ``skipped`` what nothing can be made of."""
    known, told = set(files), {}
    stems = {path.with_suffix("") for path in files if path.suffix.lower() != ".txt"}
    for path in files:
        if path.suffix.lower() == ".txt" and path.with_suffix("") not in stems:
            skipped.append(f"{path}: a caption, but no picture of this name")
    for path in sorted((p for p in files if p.name == METADATA), key=lambda p: len(p.parts)):  # the nearest one decides
        try:
            lines = _text(path).split("\n")
        except _Skip as reason:
            skipped.append(f"{path}: {reason}")
            continue
        for number, line in enumerate(lines, 1):
            try:
                if line.strip():
                    name, caption = _entry(line)
                    picture = Path(os.path.normpath(path.parent / name))
                    if picture not in known:
                        raise _Skip(f"there is no file {name}")
                    told[picture] = caption
            except _Skip as reason:
                skipped.append(f"{path}, line {number}: {reason}")
    return told


def _entry(line: str) -> tuple[str, str]:
    """Return file name and caption of a line of metadata."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _Skip(f"no JSON ({error})") from None
    name, caption = (value.get(key) for key in ("file_name", "text")) if isinstance(value, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(caption, str) or not caption.strip():
        raise _Skip("it must be an object with the texts file_name and text")
    return name, " ".join(caption.split())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise _Skip("no UTF-8 text") from None
    except OSError as error:
        raise _Skip(error.strerror or str(error)) from None


def _caption(picture: Path, told: dict[Path, str]) -> str:
    beside = next((p for p in (picture.with_suffix(".txt"), picture.with_suffix(".TXT")) if p.is_file()), None)
    if beside is None and picture not in told:
        raise _Skip(f"no caption, neither {picture.stem}.txt nor a line in {METADATA}")
    try:
        caption = told[picture] if beside is None else " ".join(_text(beside).split())
    except _Skip as reason:
        raise _Skip(f"{picture.stem}.txt: {reason}") from None
    if not caption:
        raise _Skip(f"its caption, {picture.stem}.txt, is empty")
    return caption


def _open(path: Path, side: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Return a picture as uint8 [side,side,3], and the width and height that it had."""
    try:
        with Image.open(path) as image:
            size = image.size
            image.draft(None, (2 * side, 2 * side))  # a large JPEG is decoded at a fraction of its size
            upright = ImageOps.exif_transpose(image)
            return np.asarray(ImageOps.fit(_to_rgb(upright), (side, side), Image.Resampling.LANCZOS)), size
    except UnidentifiedImageError:
        raise _Skip("no picture, or broken from its first bytes") from None
    except Exception as error:  # Pillow's decoders raise whatever a broken file makes them stumble over
        raise _Skip(f"broken ({' '.join(str(error).split()) or type(error).__name__})") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip instead of scale
        return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _report(skipped: Sequence[str], sizes: Sequence[tuple[int, int]], side: int) -> None:
    for line in skipped[:SHOWN]:
        print(f"skipped {line}", file=sys.stderr)
    if len(skipped) > SHOWN:
        print(f"skipped {len(skipped) - SHOWN} more", file=sys.stderr)
    resized, enlarged = sum(size != (side, side) for size in sizes), sum(min(size) < side for size in sizes)
    if resized:
        more = f", {enlarged} of them enlarged" if enlarged else ""
        print(f"resized {resized} of {len(sizes)} pictures to {side}x{side}{more}", file=sys.stderr)
