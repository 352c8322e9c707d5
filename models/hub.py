"""Checkpoints of a model hub, through huggingface_hub, so HF_HOME and HF_HUB_OFFLINE mean what they mean there."""

from __future__ import annotations

import re
from pathlib import Path

from models.layout import CONFIGS, MODEL_INDEX, TOKENIZER_FILES, WEIGHTS, one_line
from utils.errors import UserError

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
CLIP_TOKENIZER = "openai/clip-vit-large-patch14"


def is_hub_id(model: str) -> bool:
    """Say whether ``model`` reads as ``owner/name``."""
    return HUB_ID.fullmatch(model) is not None


def fetch(model: str) -> Path:
    """Return the local folder of a hub checkpoint, downloading what is not in the cache: no pickle, half weights last.

    Raises:
        UserError: it is neither in the cache nor to be had.
    """
    configs = [MODEL_INDEX, *(f"{part}/{name}" for part, name in CONFIGS.items())]
    tokenizer = [f"tokenizer/{name}" for name in TOKENIZER_FILES]
    plain = {part: f"{part}/{name}" for part, name in WEIGHTS.items()}
    folder = _snapshot(model, configs + tokenizer + list(plain.values()))
    absent = [name for name in plain.values() if not (folder / name).is_file()]
    if absent and (folder / MODEL_INDEX).is_file():
        folder = _snapshot(model, [name.replace(".safetensors", ".fp16.safetensors") for name in absent])
    return folder


def fetch_clip_tokenizer() -> Path:
    """Return a folder with the vocabulary of CLIP, which single-file checkpoints leave out.

    Raises:
        UserError: it is neither in the cache nor to be had.
    """
    return _snapshot(CLIP_TOKENIZER, list(TOKENIZER_FILES))


def _snapshot(model: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download  # its import takes a second, and a folder needs none of it

    try:
        return Path(snapshot_download(model, allow_patterns=patterns))
    except Exception as error:  # the hub's own errors, those of its HTTP client, and those of the disk
        raise UserError(
            f"--model {model}: no such folder, and as a hub id it can't be had ({one_line(error)}); "
            "check the name and the network, or give a folder"
        ) from None
