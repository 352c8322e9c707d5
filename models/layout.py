"""The diffusers layout on disk, checked before anything heavy is imported: folders, configs, weight file headers.

No tensor is read and no torch is imported here, so that a mistake is told at once and a digest is cheap.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.digests import known_digests
from utils.errors import UserError

MODEL_INDEX = "model_index.json"
CLASSES = {
    "text_encoder": "CLIPTextModel",
    "tokenizer": "CLIPTokenizer",
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "scheduler": None,
}
WEIGHTS = {
    "text_encoder": "model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}
CONFIGS = {component: "config.json" for component in WEIGHTS} | {"scheduler": "scheduler_config.json"}
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")
BYTES_PER_VALUE = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
MAX_HEADER = 100_000_000
DIFFUSERS_LAYOUT = "a folder in the diffusers layout"


@dataclass(frozen=True)
class Layout:
    """A checked checkpoint folder: its parsed configs and weight files by component."""

    folder: Path
    model_index: dict[str, Any]
    configs: dict[str, dict[str, Any]]
    weights: dict[str, Path]

    def files(self) -> list[Path]:
        """Return every file that decides what the model computes."""
        configs = [self.folder / MODEL_INDEX, *(self.folder / part / name for part, name in CONFIGS.items())]
        tokenizer = [self.folder / "tokenizer" / name for name in TOKENIZER_FILES]
        return [*configs, *(path for path in tokenizer if path.is_file()), *self.weights.values()]

    def digest(self) -> str:
        """Return the hexadecimal SHA-256 over names of ``files`` and the SHA-256 of their contents."""
        found = known_digests(sorted(self.files()))
        lines = (f"{path.relative_to(self.folder).as_posix()}\0{digest}\0" for path, digest in found.items())
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: the file is missing, can't be read or holds something else.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; {path.parent} must hold it")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path} is no JSON ({error}); download or copy it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, not {type(value).__name__}; download or copy it again")
    return value


def one_line(error: Exception) -> str:
    """Return what a library says went wrong, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def refuse_pickle(path: Path) -> None:
    """Raise a UserError where ``path`` is named as a pickle: loading one runs whatever code is in it."""
    if path.suffix.lower() in PICKLES:
        raise UserError(f"--model {path} is a pickle, which is never loaded; convert it to .safetensors first")


def inspect_folder(folder: Path) -> Layout:
    """Check a folder in the diffusers layout, all but the shapes of its tensors.

    Raises:
        UserError: the folder is missing, empty, of another pipeline, lacks a component or holds only pickles.
    """
    if not folder.is_dir():
        raise UserError(
            f"--model {folder}: no such folder; give {DIFFUSERS_LAYOUT}, a .safetensors file or random:tiny"
        )
    if not any(folder.iterdir()):
        raise UserError(f"--model {folder} is empty; give {DIFFUSERS_LAYOUT}")
    if not (folder / MODEL_INDEX).is_file():
        _refuse_only_pickles(folder, f"--model {folder}")
        raise UserError(f"--model {folder} has no {MODEL_INDEX}; give {DIFFUSERS_LAYOUT}")
    model_index, configs = read_configs(folder)
    return Layout(folder, model_index, configs, {part: _weight_file(folder / part, part) for part in WEIGHTS})


def read_configs(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return model_index.json and the config of each component of a folder in the diffusers layout.

    Raises:
        UserError: one is missing or can't be read, or they are of another pipeline.
    """
    model_index = read_json(folder / MODEL_INDEX)
    _check_pipeline(folder, model_index)
    return model_index, {part: read_json(folder / part / name) for part, name in CONFIGS.items()}


def _check_pipeline(folder: Path, model_index: dict[str, Any]) -> None:
    pipeline = model_index.get("_class_name")
    if pipeline != "StableDiffusionPipeline" or "text_encoder_2" in model_index:
        raise UserError(f"--model {folder} is a {pipeline}, which is not supported; give an SD 1.x or 2.x checkpoint")
    for component, expected in CLASSES.items():
        entry = model_index.get(component)
        name = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if name is None or not (folder / component).is_dir():
            raise UserError(f"--model {folder} lacks the component {component}; it needs {', '.join(CLASSES)}")
        if expected is not None and str(name).removesuffix("Fast") != expected:
            raise UserError(f"--model {folder}: {component} is a {name}, which is not supported; {expected} is")
    tokenizer = folder / "tokenizer"
    if not (tokenizer / "tokenizer.json").is_file():
        for name in ("vocab.json", "merges.txt"):
            if not (tokenizer / name).is_file():
                raise UserError(f"{tokenizer / name} is missing; a tokenizer is vocab.json and merges.txt")


def _refuse_only_pickles(folder: Path, what: str) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    pickles = [path for path in files if path.suffix.lower() in PICKLES]
    if pickles and not any(path.suffix.lower() == ".safetensors" for path in files):
        raise UserError(
            f"{what} holds only pickles ({pickles[0].name}), which are never loaded; convert them to .safetensors"
        )


def _weight_file(folder: Path, component: str) -> Path:
    plain = folder / WEIGHTS[component]
    half = plain.with_suffix(".fp16.safetensors")
    for path in (plain, half):
        if path.is_file():
            return path
    _refuse_only_pickles(folder, str(folder))
    raise UserError(f"{plain} is missing; the component {component} needs its weights (or {half.name})")


def read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the shapes of a safetensors file from its header and check that the file is whole.

    Returns:
        Shape by tensor name.

    Raises:
        UserError: the file is cut short, is no safetensors, or its header contradicts itself.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= MAX_HEADER:
            raise UserError(f"{path} is no safetensors file or was cut short; download or copy it again")
        text = stream.read(length)
    if len(text) < length:
        raise UserError(f"{path} is truncated inside its header; download or copy it again")
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        shapes = {name: _checked_shape(entry) for name, entry in header.items()}
        data = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise UserError(f"{path} has a broken header ({error}); download or copy it again") from None
    if size != 8 + length + data:
        state = "truncated" if size < 8 + length + data else "too long"
        raise UserError(f"{path} is {state}: {size} bytes instead of {8 + length + data}; download or copy it again")
    return shapes


def _checked_shape(entry: dict[str, Any]) -> tuple[int, ...]:
    shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
    values = 1
    for extent in shape:
        values *= extent
    width = BYTES_PER_VALUE.get(entry["dtype"])
    if width is None:
        raise ValueError(f"dtype {entry['dtype']} is not supported")
    if begin < 0 or end - begin != values * width or any(extent < 0 for extent in shape):
        raise ValueError(f"shape {list(shape)} doesn't fit its bytes")
    return shape
