"""The trained networks as a checkpoint in the diffusers layout, and back."""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, SchedulerMixin, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from demo.diffusion import ddim
from demo.saving import beside
from utils.errors import UserError

DEFAULT_PROMPT = "a red circle on a blue background"
COMPONENTS = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
Parts = tuple[AutoencoderKL, CLIPTextModel, UNet2DConditionModel, CLIPTokenizer]


def pipeline(parts: Parts, scheduler: SchedulerMixin | None = None) -> StableDiffusionPipeline:
    """Return diffusers' pipeline over ``parts``.

    Where no scheduler is given, it is DDIM with the settings of Stable Diffusion 1.5, whose own, PNDM, goes astray here
    at 20 steps and guidance 7.5.
    """
    vae, text_encoder, unet, tokenizer = parts
    if scheduler is None:
        scheduler = ddim()
        scheduler.register_to_config(skip_prk_steps=True)  # for those who choose PNDM
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def export(parts: Parts, folder: Path, prompt: str = DEFAULT_PROMPT, scheduler: SchedulerMixin | None = None) -> None:
    """Write ``parts`` as half-precision safetensors to ``folder``, replacing the components that are there.

    All is written beside its place first, then renamed, so that an interruption or a full disk leaves no file
    half-written. ``prompt`` becomes the checkpoint's example; ``scheduler``: see ``pipeline``.

    Raises:
        UserError: the folder can't be written; what it held before is intact.
    """
    halves = (*(nn.Module.to(copy.deepcopy(part), torch.float16) for part in parts[:3]), parts[3])
    halves[2].set_attn_processor(AttnProcessor2_0())
    with beside(folder) as temporary:
        pipeline(halves, scheduler).save_pretrained(temporary, safe_serialization=True)
        shutil.copytree(parts[3].name_or_path, temporary / "tokenizer", dirs_exist_ok=True)
        _amend(temporary / "model_index.json", _default_prompt=prompt)
        # transformers 5 would load the stored precision while diffusers loads float32, and the two do not mix
        _amend(temporary / "text_encoder" / "config.json", dtype="float32")
        for network in ("unet", "vae"):
            _amend(temporary / network / "config.json")
        folder.mkdir(parents=True, exist_ok=True)
        for name in (*COMPONENTS, "model_index.json"):
            target = folder / name
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(temporary / name, target)


def _amend(path: Path, **values: str) -> None:
    """Set ``values`` in a JSON file, and take out where the weights came from, a path of this machine."""
    content = json.loads(path.read_text(encoding="utf-8")) | values
    content.pop("_name_or_path", None)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load(folder: Path) -> Parts:
    """Load the networks of a checkpoint in float32, to train them further.

    Raises:
        UserError: the folder is no checkpoint, or a component is missing.
    """
    missing = [name for name in COMPONENTS[:4] if not (folder / name / "config.json").exists() and name != "tokenizer"]
    if missing or not (folder / "tokenizer").is_dir():
        raise UserError(f"{folder}: no checkpoint to go on from ({', '.join(missing) or 'tokenizer'} missing)")
    return (
        AutoencoderKL.from_pretrained(folder / "vae", use_safetensors=True, torch_dtype=torch.float32),
        CLIPTextModel.from_pretrained(folder / "text_encoder", use_safetensors=True, dtype=torch.float32),
        UNet2DConditionModel.from_pretrained(folder / "unet", use_safetensors=True, torch_dtype=torch.float32),
        CLIPTokenizer.from_pretrained(folder / "tokenizer"),
    )
