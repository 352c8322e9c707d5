"""Pictures on disk: PNG with the generation parameters inside, under names that are never taken twice."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import json
import os
import re
import secrets
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from utils.errors import UserError
from utils.signals import undisturbed

SLUG_LENGTH = 40
NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class PictureInfo:
    """What a picture was made from: enough to make it again. ``sampler`` is the display name of the A1111 web UI.

    ``width`` and ``height`` are in pixels, ``model_digest`` is hexadecimal, ``extra`` holds further keys for the text.
    """

    prompt: str
    negative_prompt: str
    steps: int
    sampler: str
    guidance_scale: float
    seed: int
    width: int
    height: int
    model_name: str
    model_digest: str
    extra: Mapping[str, object] = field(default_factory=dict)


def _quote(value: object) -> str:
    """Quote a value as the A1111 web UI does, so that its commas and colons don't end it."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ',:"\n') else text


def parameters_text(info: PictureInfo) -> str:
    """Return the text that the A1111 web UI and its readers expect: prompt, negative prompt, one line of settings."""
    settings = {
        "Steps": info.steps,
        "Sampler": info.sampler,
        "CFG scale": float(info.guidance_scale),
        "Seed": info.seed,
        "Size": f"{info.width}x{info.height}",
        "Model hash": info.model_digest[:10],
        "Model": info.model_name,
        **info.extra,
    }
    negative = f"\nNegative prompt: {info.negative_prompt}" if info.negative_prompt else ""
    line = ", ".join(f"{key}: {_quote(value)}" for key, value in settings.items())
    text = f"{info.prompt}{negative}\n{line}".strip().replace("\0", "")
    return text.encode("utf-8", "replace").decode("utf-8")  # bytes that were no UTF-8 arrive as lone surrogates


def to_uint8(picture: np.ndarray) -> np.ndarray:
    """Round a float picture in [0, 1], of any shape, to uint8 as diffusers does: to the nearest, ties to even."""
    return (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)


def _encode(pixels: np.ndarray, info: PictureInfo) -> bytes:
    text = PngInfo()
    text.add_text("parameters", parameters_text(info))  # tEXt for Latin-1, iTXt for the rest
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", pnginfo=text)
    return stream.getvalue()


def _slug(prompt: str) -> str:
    ascii_only = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode("ascii").lower()
    return re.sub(r"[^a-z0-9]+", "-", ascii_only)[:SLUG_LENGTH].strip("-")


def _names(folder: Path, name: str | None, info: PictureInfo) -> Iterator[str]:
    """Yield the names to try: ``x.png, x-1.png ...`` or ``00001-<seed>-<slug>.png, 00002-...``."""
    if name is not None:
        path = Path(name)
        yield name
        yield from (f"{path.stem}-{i}{path.suffix}" for i in itertools.count(1))
    numbers = (re.match(r"(\d{1,9})-", entry.name) for entry in folder.iterdir())
    first = 1 + max((int(match[1]) for match in numbers if match), default=0)
    rest = "-".join(filter(None, [str(info.seed), _slug(info.prompt)]))
    yield from (f"{number:05d}-{rest}.png" for number in itertools.count(first))


def _give_name(temporary: Path, path: Path) -> bool:
    """Give a finished file its name; return False, and change nothing, where the name is taken."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return _give_name_without_links(temporary, path)
    return True


def _give_name_without_links(temporary: Path, path: Path) -> bool:
    """Do the same on a file system without hard links (exFAT, some network shares)."""
    try:
        path.open("xb").close()
    except FileExistsError:
        return False
    try:
        os.replace(temporary, path)
    except BaseException:
        path.unlink()
        raise
    return True


def save_picture(pixels: np.ndarray, folder: Path, name: str | None, info: PictureInfo) -> Path:
    """Write ``pixels`` (uint8, [H, W, 3]) as a PNG into ``folder`` and return its path.

    ``name`` ends in .png; ``-1``, ``-2`` ... is added where it is taken. Without a name it is made of a running number,
    the seed and the prompt. The file appears whole or not at all and never replaces another, whoever else writes there.

    Raises:
        UserError: the folder can't be made or written, or the disk is full.
    """
    data, folder = _encode(pixels, info), Path(folder)
    temporary = folder / f".{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        for path in (folder / each for each in _names(folder, name, info)):
            if _give_name(temporary, path):
                return path
    except OSError as error:
        raise UserError(f"--output-dir {folder}: the picture can't be written ({error.strerror or error})") from None
    finally:
        # never made, already renamed, or the folder failed, which has been told
        with undisturbed(), contextlib.suppress(OSError):
            temporary.unlink()
    raise AssertionError("the names never end")
