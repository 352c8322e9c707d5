"""What every peer gets and what it is judged by: seeded inputs, and what diffusers makes of them in float32."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backends.peer import COMMAND, FUNCTIONS, GUIDANCE_SCALE, INPUTS, PICTURE, PROMPT, REFERENCE, SEED, Settings
from models.checkpoint import Checkpoint, load_checkpoint
from models.components import Component, components
from utils.config import BaselineConfig


def load_parts(settings: Settings) -> tuple[Checkpoint, dict[str, Component]]:
    """Load the model, and its components for the size and number of pictures that are asked for.

    Raises:
        UserError: the model can't be loaded, or can't make this size.
    """
    checkpoint = load_checkpoint(settings.model)
    return checkpoint, {
        part.name: part
        for part in components(checkpoint, *checkpoint.size(settings.height, settings.width), settings.batch_size)
    }


def make_references(settings: Settings, names: Sequence[str]) -> Settings:
    """Store inputs and references of the components ``names``, unless they are there, in a folder of model and size.

    Returns the settings with that folder and the size in pixels.

    Raises:
        UserError: the model can't be loaded, or can't make this size.
    """
    torch.set_num_threads(settings.num_threads)
    checkpoint, parts = load_parts(settings)
    height, width = checkpoint.size(settings.height, settings.width)
    slug = re.sub(r"[^a-zA-Z0-9]+", "-", Path(checkpoint.name).name).strip("-")
    folder = settings.folder / f"{slug}-{checkpoint.digest[:12]}-{width}x{height}"
    bytes_ = sum(4 * value.numel() for part in parts.values() for value in part.module.parameters())
    settings = replace(
        settings, folder=folder, height=height, width=width, model_digest=checkpoint.digest, model_bytes=bytes_
    )
    for name in names:
        path = settings.component_folder(name)
        if (path / REFERENCE).is_file():
            continue
        path.mkdir(parents=True, exist_ok=True)
        if name in (COMMAND, PICTURE):
            pictures = _pictures(settings, checkpoint)
            _save(path / REFERENCE, pictures if name == PICTURE else pictures[0])
        else:
            _store_call(path, parts[name])
    return settings


def _store_call(folder: Path, part: Component) -> None:
    (function,) = (function for function in part.functions if function.name == FUNCTIONS[part.name])
    inputs: dict[str, Any] = {name: value.numpy() for name, value in function.inputs}
    np.savez(folder / INPUTS, **inputs)
    with torch.inference_mode():
        _save(folder / REFERENCE, part.module(*(value for _, value in function.inputs)).numpy())


def _pictures(settings: Settings, checkpoint: Checkpoint) -> np.ndarray:
    """Draw the picture of each seed by itself."""
    from backends.diffusers import DiffusersBackend

    plain = replace(settings, dtype="float32", device="cpu", attention="sdpa", tome_ratio=None)
    backend = DiffusersBackend(baseline_config(plain), checkpoint)
    return np.stack([backend.generate(PROMPT, "", SEED + i).picture for i in range(settings.batch_size)])


def baseline_config(settings: Settings, compile: bool = False) -> BaselineConfig:
    """Return what diffusers' own pipeline is to draw."""
    merges = settings.tome_ratio is not None
    return BaselineConfig(
        model=settings.model,
        device=settings.device,
        dtype=settings.dtype,
        height=settings.height,
        width=settings.width,
        steps=settings.steps,
        scheduler_label=settings.scheduler_label,
        guidance_scale=GUIDANCE_SCALE,
        num_threads=settings.num_threads,
        output_dir=settings.folder,
        compile=compile,
        attention=settings.attention,
        apply_tome=merges,
        tome_ratio=settings.tome_ratio,
    )


def _save(path: Path, value: np.ndarray) -> None:
    """Write a .npy file that appears whole or not at all."""
    temporary = path.with_name(f"partial-{path.name}")
    np.save(temporary, value)
    temporary.rename(path)
