"""What ``--model`` may name, and what can be refused before torch is imported."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from models.architectures import architecture
from models.hub import fetch, is_hub_id
from models.layout import CONFIGS, WEIGHTS, inspect_folder, read_header, refuse_pickle
from utils.digests import known_digests

RANDOM = "random:"
PARTS = {"text_encoder": "text_encoder", "unet": "unet", "vae_decoder": "vae"}  # of a checkpoint, by component


def check_model(model: str) -> None:
    """Refuse at once what ``load_checkpoint`` would refuse, as far as folders, configs and file headers tell.

    Raises:
        UserError: nothing there, a pickle, an unknown architecture, a missing component, a file cut short.
    """
    if model.startswith(RANDOM):
        architecture(model.removeprefix(RANDOM), f"--model {model}")
        return
    path = Path(model).expanduser()
    refuse_pickle(path)
    if path.is_file() or path.suffix == ".safetensors" or (not path.exists() and is_hub_id(model)):
        return
    for weights in inspect_folder(path).weights.values():
        read_header(weights)


def digests(model: str) -> dict[str, str]:
    """Return a digest of what each component is made of, and as ``artifact`` one of all the files and their names.

    A component is made of its part's weights and the configs of all parts with weights.

    Raises:
        UserError: see ``check_model``; a hub id that can't be had.
    """
    if model.startswith(RANDOM):
        return dict.fromkeys((*PARTS, "artifact"), model)
    path = Path(model).expanduser()
    if path.is_file() or path.suffix == ".safetensors":
        return dict.fromkeys((*PARTS, "artifact"), _digest(path.name, _beside(path)))
    layout = inspect_folder(path if path.exists() or not is_hub_id(model) else fetch(model))
    configs = [layout.folder / part / CONFIGS[part] for part in WEIGHTS]
    found = {component: _digest("", [*configs, layout.weights[part]]) for component, part in PARTS.items()}
    return found | {"artifact": _digest(path.name, layout.files())}


def _beside(path: Path) -> list[Path]:
    """Return a single file and the configs and tokenizer files that it is loaded with, if there are any."""
    others = (*path.parent.glob("*.json"), *path.parent.glob("*/*.json"), *path.parent.glob("tokenizer/*"))
    return sorted({path, *(other for other in others if other.is_file())})


def _digest(name: str, files: Iterable[Path]) -> str:
    found = known_digests(sorted(files))
    lines = "\n".join(f"{path.parent.name}/{path.name} {digest}" for path, digest in found.items())
    return hashlib.sha256(f"{name}\n{lines}".encode()).hexdigest()
