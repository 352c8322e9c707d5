"""Single-file checkpoints: one .safetensors in the layout of the original Stable Diffusion code."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
    is_open_clip_model,
)
from safetensors.torch import load_file

from models.architectures import ARCHITECTURES, Architecture
from models.assembly import Checkpoint, build_module, load_tokenizer, make_checkpoint, quiet
from models.hub import CLIP_TOKENIZER, fetch_clip_tokenizer
from models.layout import MODEL_INDEX, WEIGHTS, one_line, read_configs, read_header
from models.weights import CLIP_PREFIX, assign, check_tensors
from utils.errors import UserError

CONTEXT_KEY = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
LATENT_KEY = "model.diffusion_model.input_blocks.0.0.weight"
ARCHITECTURE_OF_CONTEXT = {768: "sd15", 1024: "sd21"}


def load_single_file(path: Path) -> Checkpoint:
    """Load a .safetensors file with UNet, VAE and text encoder in the original layout.

    Configs and tokenizer come from beside the file where a model_index.json lies there. Else they are those of SD 1.5,
    or of SD 2.1 for a context of 1024, with the tokenizer from a folder ``tokenizer`` beside the file or from the hub.

    Raises:
        UserError: the file is missing, damaged or another kind of model, or there is no tokenizer.
    """
    shapes = _read_shapes(path)
    if (path.parent / MODEL_INDEX).is_file():
        model_index, configs = read_configs(path.parent)
        tokenizer, prompt = load_tokenizer(path.parent / "tokenizer"), model_index.get("_default_prompt")
    else:
        parts = _architecture(path, shapes)
        configs = {name: getattr(parts, name) for name in (*WEIGHTS, "scheduler")}
        tokenizer, prompt = load_tokenizer(_tokenizer_folder(path)), None
        tokenizer.pad_token = parts.pad_token
    with quiet():
        return make_checkpoint(
            name=path.stem,
            digest=_digest(path, configs, tokenizer.backend_tokenizer.to_str()),
            tokenizer=tokenizer,
            scheduler_config=configs["scheduler"],
            default_prompt=prompt,
            **_load_modules(path, configs),
        )


def _read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    if not path.is_file():
        raise UserError(f"--model {path}: no such file; give a folder in the diffusers layout or a .safetensors file")
    if path.suffix != ".safetensors":
        raise UserError(f"--model {path} is no .safetensors file; give one, or a folder in the diffusers layout")
    shapes = read_header(path)
    if CONTEXT_KEY not in shapes or LATENT_KEY not in shapes:
        raise UserError(f"--model {path} holds no SD 1.x or 2.x in the original layout; is it a part of a folder?")
    return shapes


def _architecture(path: Path, shapes: dict[str, tuple[int, ...]]) -> Architecture:
    context, latent_channels = shapes[CONTEXT_KEY][-1], shapes[LATENT_KEY][1]
    if context not in ARCHITECTURE_OF_CONTEXT or latent_channels != 4:
        raise UserError(f"--model {path} is not a text-to-image model of SD 1.x or 2.x, which alone are supported")
    return ARCHITECTURES[ARCHITECTURE_OF_CONTEXT[context]]


def _tokenizer_folder(path: Path) -> Path:
    folder = path.parent / "tokenizer"
    if folder.is_dir():
        return folder
    try:
        return fetch_clip_tokenizer()
    except UserError:
        raise UserError(
            f"--model {path} brings no tokenizer, and {CLIP_TOKENIZER} is neither cached nor to be had; "
            f"put its vocab.json and merges.txt into {folder}"
        ) from None


def _load_modules(path: Path, configs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    tensors = load_file(path)
    modules = {}
    for component in WEIGHTS:
        module = build_module(component, configs[component], f"--model {path}: the config")
        try:
            converted = _convert(component, module, tensors)
        except Exception as error:  # whatever a missing tensor hits first inside the library
            raise UserError(
                f"--model {path} can't be read as SD 1.x or 2.x ({one_line(error)}); is it whole?"
            ) from None
        check_tensors(module, path, {name: tuple(tensor.shape) for name, tensor in converted.items()})
        assign(module, converted)
        modules[component] = module
    return modules


def _convert(component: str, module: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a component's tensors under the names that diffusers and transformers give them."""
    if component == "unet":
        return convert_ldm_unet_checkpoint(tensors, module.config)
    if component == "vae":
        return convert_ldm_vae_checkpoint(tensors, module.config)
    if is_open_clip_model(tensors):
        converted = convert_open_clip_checkpoint(module, tensors)
    else:
        converted = convert_ldm_clip_checkpoint(tensors)
    return {name.removeprefix(CLIP_PREFIX): tensor for name, tensor in converted.items()}


def _digest(path: Path, configs: dict[str, dict[str, Any]], tokenizer: str) -> str:
    digest = hashlib.sha256(json.dumps([configs, tokenizer], sort_keys=True).encode())
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
