"""The stages of the demo's training: scenes, the autoencoder, cached latents, then UNet and text encoder."""

from __future__ import annotations

import json

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from demo.architecture import Architecture
from demo.autoencoder import encode, train_autoencoder
from demo.checkpoint import Parts, export, load
from demo.config import TrainConfig
from demo.dataset import make_scene, vocabulary
from demo.diffusion import Captioned, tokenise, train_diffusion
from demo.pictures import MIX, held_out, scenes
from demo.saving import replacing
from demo.tokenizer import write_tokenizer
from demo.training import Budget
from utils.errors import UserError

FOCUS = (0.6, 1.15)  # of the timesteps: what a thing is gets decided while there is much noise, its outline later
UNSEEN_SEED = 1  # of the scenes that the autoencoder is judged on


def train(config: TrainConfig, architecture: Architecture) -> None:
    """Run the stages that the configuration names and export the checkpoint after the last."""
    pixels = scenes(config.work / "scenes.npy", config.scenes, architecture.size, config.seed)
    torch.manual_seed(config.seed)
    if config.stage != "diffusion":
        _autoencoder_stage(config, architecture, pixels)
    if config.stage != "autoencoder":
        _diffusion_stage(config, architecture, pixels)


def _autoencoder_stage(config: TrainConfig, architecture: Architecture, pixels: np.ndarray) -> None:
    vae = architecture.autoencoder()
    started = config.resume and not (config.work / "autoencoder.safetensors").exists()
    if started and (config.output / "vae").is_dir():
        vae = load(config.output)[0]
    train_autoencoder(
        vae,
        pixels,
        held_out(64, architecture.size, UNSEEN_SEED),
        config.work,
        Budget(config.autoencoder_minutes, config.steps),
        batch=config.batch_size // 4,
        rate=2 * config.learning_rate,
        seed=config.seed,
        resume=config.resume,
        workers=config.worker_count(),
        every_minutes=config.checkpoint_minutes,
        compiled=config.compile,
    )
    (config.work / "latents.safetensors").unlink(missing_ok=True)
    with replacing(config.work / "vae") as temporary:
        vae.save_pretrained(temporary)


def _latents(config: TrainConfig, vae: AutoencoderKL, pixels: np.ndarray) -> torch.Tensor:
    """Return scaled latents, float16 [N,C,h,w], and put the factor that gives them a deviation of 1 into ``vae``."""
    path = config.work / "latents.safetensors"
    wanted = {"scenes": str(len(pixels)), "seed": str(config.seed)}
    if path.exists():
        with safe_open(path, "pt") as file:
            found = file.metadata()
            if {key: found[key] for key in wanted} == wanted:
                vae.register_to_config(scaling_factor=json.loads(found["factor"]))
                return file.get_tensor("latents")
    latents = encode(vae, pixels, config.worker_count())
    factor = 1 / latents.std().item()
    latents = (latents * factor).half().contiguous()
    with replacing(path) as temporary:
        save_file({"latents": latents}, temporary, {**wanted, "factor": json.dumps(factor)})
    vae.register_to_config(scaling_factor=factor)
    return latents


def _start(config: TrainConfig, architecture: Architecture) -> Parts:
    """Return the networks that the diffusion training starts from: fresh ones, or the exported ones on --resume."""
    resumable = (config.work / "diffusion.safetensors").exists()
    if config.resume and not resumable and (config.output / "unet").is_dir():
        return load(config.output)
    folder = config.work / "vae"
    if not folder.is_dir():
        folder = config.output / "vae"
    if not folder.is_dir():
        raise UserError(f"{config.work}: no autoencoder to build on; run --stage autoencoder first")
    with replacing(config.work / "tokenizer") as temporary:
        write_tokenizer(vocabulary(), temporary)
    tokenizer = CLIPTokenizer.from_pretrained(config.work / "tokenizer")
    vae = AutoencoderKL.from_pretrained(folder, use_safetensors=True, torch_dtype=torch.float32)
    return vae, architecture.text_encoder(len(tokenizer)), architecture.denoiser(), tokenizer


def _diffusion_stage(config: TrainConfig, architecture: Architecture, pixels: np.ndarray) -> None:
    parts = _start(config, architecture)
    latents = _latents(config, parts[0], pixels)
    drawn = [make_scene(index, config.seed, **MIX) for index in range(len(pixels))]  # type: ignore[arg-type]
    ids = tokenise(parts[3], [scene.caption for scene in drawn]).short()
    data = Captioned(latents, ids, np.array([len(scene.things) == 2 for scene in drawn]))
    train_diffusion(
        parts,
        data,
        config.work,
        Budget(config.minutes, config.steps),
        batch=config.batch_size,
        rate=config.learning_rate,
        seed=config.seed,
        resume=config.resume,
        workers=config.worker_count(),
        every_minutes=config.checkpoint_minutes,
        compiled=config.compile,
        focus=FOCUS,
        keep=lambda: export(parts, config.work / "preliminary"),
    )
    export(parts, config.output)
