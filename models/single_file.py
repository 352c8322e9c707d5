"""Single-file checkpoints: one .safetensors in the layout of the original Stable Diffusion code."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from models.architectures import ARCHITECTURES
from models.assembly import Checkpoint, load_tokenizer, make_checkpoint, quiet
from models.hub import CLIP_TOKENIZER, fetch_clip_tokenizer
from models.layout import CLASSES, CONFIGS, MODEL_INDEX, one_line, read_configs, read_header
from utils.errors import UserError

if TYPE_CHECKING:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

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
    if not path.is_file():
        raise UserError(f"--model {path}: no such file; give a folder in the diffusers layout or a .safetensors file")
    if path.suffix != ".safetensors":
        raise UserError(f"--model {path} is no .safetensors file; give one, or a folder in the diffusers layout")
    shapes = read_header(path)
    if CONTEXT_KEY not in shapes or LATENT_KEY not in shapes:
        raise UserError(
            f"--model {path} holds no SD 1.x or 2.x model in the original layout; its folder may be one in diffusers'"
        )
    if (path.parent / MODEL_INDEX).is_file():
        return _load(path, path.parent)
    context = shapes[CONTEXT_KEY][-1]
    if context not in ARCHITECTURE_OF_CONTEXT or shapes[LATENT_KEY][1] != 4:
        raise UserError(f"--model {path} is not a text-to-image model of SD 1.x or 2.x, which alone are supported")
    with tempfile.TemporaryDirectory() as folder:
        _write_configs(ARCHITECTURE_OF_CONTEXT[context], path, Path(folder))
        return _load(path, Path(folder))


def _write_configs(arch: str, path: Path, folder: Path) -> None:
    """Write the configs of an architecture and a tokenizer in the diffusers layout."""
    tokenizer = path.parent / "tokenizer"
    if not tokenizer.is_dir():
        try:
            tokenizer = fetch_clip_tokenizer()
        except UserError:
            raise UserError(
                f"--model {path} brings no tokenizer, and {CLIP_TOKENIZER} is neither cached nor to be had; "
                f"put its vocab.json and merges.txt into {tokenizer}"
            ) from None
    parts = ARCHITECTURES[arch]
    for component, name in CONFIGS.items():
        (folder / component).mkdir()
        (folder / component / name).write_text(json.dumps(getattr(parts, component)), encoding="utf-8")
    loaded = load_tokenizer(tokenizer)
    loaded.pad_token = parts.pad_token
    loaded.save_pretrained(folder / "tokenizer")
    libraries = {"text_encoder": "transformers", "tokenizer": "transformers"}
    index = {
        part: [libraries.get(part, "diffusers"), name or parts.scheduler["_class_name"]]
        for part, name in CLASSES.items()
    }
    index_text = json.dumps({"_class_name": "StableDiffusionPipeline", **index})
    (folder / MODEL_INDEX).write_text(index_text, encoding="utf-8")


def _load(path: Path, configs_folder: Path) -> Checkpoint:
    model_index, configs = read_configs(configs_folder)
    with quiet():
        pipeline = _read(path, configs_folder)
        tokenizer = load_tokenizer(configs_folder / "tokenizer")
        digest = hashlib.sha256(json.dumps([configs, tokenizer.backend_tokenizer.to_str()], sort_keys=True).encode())
        with path.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
        return make_checkpoint(
            name=path.stem,
            digest=digest.hexdigest(),
            text_encoder=pipeline.text_encoder,
            unet=pipeline.unet,
            vae=pipeline.vae,
            tokenizer=tokenizer,
            scheduler_config=configs["scheduler"],
            default_prompt=model_index.get("_default_prompt"),
        )


def _read(path: Path, configs_folder: Path) -> StableDiffusionPipeline:
    import torch
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    try:
        pipeline = StableDiffusionPipeline.from_single_file(
            path,
            config=str(configs_folder),
            local_files_only=True,
            torch_dtype=torch.float32,
            safety_checker=None,
            feature_extractor=None,
        )
    except Exception as error:  # whatever a missing or misshapen tensor hits first inside the library
        raise UserError(
            f"--model {path} doesn't fit its configs ({one_line(error)}); is it SD 1.x or 2.x, and whole?"
        ) from None
    for module in (pipeline.text_encoder, pipeline.unet, pipeline.vae):
        missing = [name for name, tensor in module.named_parameters() if tensor.is_meta]
        if missing:
            raise UserError(f"--model {path} lacks tensors, {missing[0]} for one; is it whole?")
    return pipeline
