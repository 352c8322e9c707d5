"""Loading a Stable Diffusion checkpoint, whatever it comes from."""

from __future__ import annotations

from pathlib import Path

import torch

from models.assembly import Checkpoint, build_module, load_tokenizer, make_checkpoint, quiet
from models.hub import fetch, is_hub_id
from models.layout import CONFIGS, WEIGHTS, Layout, inspect_folder
from models.random_checkpoint import random_checkpoint
from models.single_file import load_single_file
from models.source import RANDOM, check_model
from models.weights import load_weights

__all__ = ["Checkpoint", "load_checkpoint", "load_folder"]


def load_checkpoint(model: str) -> Checkpoint:
    """Load ``model``: a folder in the diffusers layout, a .safetensors file, a hub id or ``random:<architecture>``.

    Weights are read from safetensors only, never from a pickle.

    Raises:
        UserError: nothing there, another kind of model, a missing component, a damaged file or a wrong shape.
    """
    check_model(model)
    if model.startswith(RANDOM):
        return random_checkpoint(model.removeprefix(RANDOM))
    path = Path(model).expanduser()
    if path.is_file() or path.suffix == ".safetensors":
        return load_single_file(path)
    if not path.exists() and is_hub_id(model):
        return load_folder(fetch(model), model)
    return load_folder(path, _folder_name(path))


def load_folder(folder: Path, name: str) -> Checkpoint:
    """Load a folder in the diffusers layout and call it ``name``.

    Raises:
        UserError: see ``load_checkpoint``.
    """
    layout = inspect_folder(folder)
    with quiet():
        modules = {component: _load_component(layout, component) for component in WEIGHTS}
        tokenizer = load_tokenizer(folder / "tokenizer")
        return make_checkpoint(
            name=name,
            digest=layout.digest(),
            tokenizer=tokenizer,
            scheduler_config=layout.configs["scheduler"],
            default_prompt=layout.model_index.get("_default_prompt"),
            **modules,
        )


def _load_component(layout: Layout, component: str) -> torch.nn.Module:
    where = layout.folder / component / CONFIGS[component]
    module = build_module(component, layout.configs[component], str(where))
    load_weights(module, layout.weights[component])
    return module


def _folder_name(path: Path) -> str:
    """Name a checkpoint by its folder, or by the one above where the folder is called only ``checkpoint``."""
    path = path.resolve()
    return path.parent.name if path.name == "checkpoint" else path.name
