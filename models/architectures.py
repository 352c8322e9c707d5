"""Configs of the architectures that can be made without a download: Stable Diffusion 1.5, 2.1 and tiny ones.

The full-size ones are the published configs of those checkpoints. The tiny ones keep their topology.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from utils.errors import UserError, nearest

CLIP_VOCABULARY = 49408
CLIP_LENGTH = 77


@dataclass(frozen=True)
class Architecture:
    """Configs by component, as the config.json files of a checkpoint hold them."""

    text_encoder: dict[str, Any]
    unet: dict[str, Any]
    vae: dict[str, Any]
    scheduler: dict[str, Any]
    pad_token: str


def _text_encoder(hidden: int, layers: int, heads: int, vocabulary: int, activation: str) -> dict[str, Any]:
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": CLIP_LENGTH,
        "hidden_act": activation,
        "layer_norm_eps": 1e-5,
        "projection_dim": hidden,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }


def _unet(channels: list[int], context: int, heads: int | list[int], linear: bool, **other: Any) -> dict[str, Any]:
    attended = len(channels) - 1  # all blocks but the deepest have attention
    return {
        "_class_name": "UNet2DConditionModel",
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": channels,
        "down_block_types": ["CrossAttnDownBlock2D"] * attended + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * attended,
        "cross_attention_dim": context,
        "attention_head_dim": heads,  # the number of heads, in spite of its name
        "use_linear_projection": linear,
        **other,
    }


def _vae(channels: list[int], sample_size: int, **other: Any) -> dict[str, Any]:
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "block_out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "sample_size": sample_size,
        "scaling_factor": 0.18215,
        **other,
    }


def _scheduler(class_name: str, prediction_type: str) -> dict[str, Any]:
    return {
        "_class_name": class_name,
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": prediction_type,
        "timestep_spacing": "leading",
        "trained_betas": None,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "skip_prk_steps": True,
        "clip_sample": False,
    }


TINY_VOCABULARY = 640
ARCHITECTURES = {
    "tiny": Architecture(
        _text_encoder(32, 2, 2, TINY_VOCABULARY, "quick_gelu"),
        _unet([16, 32, 32], 32, 2, False, sample_size=8, layers_per_block=1, norm_num_groups=8),
        _vae([8, 16, 16, 16], 64, layers_per_block=1, norm_num_groups=4),
        _scheduler("PNDMScheduler", "epsilon"),
        "<|endoftext|>",
    ),
    "tiny-sd2": Architecture(
        _text_encoder(48, 2, 3, TINY_VOCABULARY, "gelu"),
        _unet([16, 32, 32], 48, [1, 2, 4], True, sample_size=8, layers_per_block=1, norm_num_groups=8),
        _vae([8, 16, 16, 16], 64, layers_per_block=1, norm_num_groups=4),
        _scheduler("DDIMScheduler", "v_prediction"),
        "!",
    ),
    "sd15": Architecture(
        _text_encoder(768, 12, 12, CLIP_VOCABULARY, "quick_gelu"),
        _unet([320, 640, 1280, 1280], 768, 8, False, sample_size=64, layers_per_block=2, norm_num_groups=32),
        _vae([128, 256, 512, 512], 512, layers_per_block=2, norm_num_groups=32),
        _scheduler("PNDMScheduler", "epsilon"),
        "<|endoftext|>",
    ),
    "sd21": Architecture(
        _text_encoder(1024, 23, 16, CLIP_VOCABULARY, "gelu"),  # 24 layers, the last one left out: penultimate output
        _unet([320, 640, 1280, 1280], 1024, [5, 10, 20, 20], True, sample_size=96, layers_per_block=2),
        _vae([128, 256, 512, 512], 768, layers_per_block=2, norm_num_groups=32),
        _scheduler("DDIMScheduler", "v_prediction"),
        "!",
    ),
}


def architecture(name: str, where: str) -> Architecture:
    """Return the architecture called ``name``; ``where`` begins the message that lists the choices.

    Raises:
        UserError: there is none of this name.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    raise UserError(
        f"{where}: unknown architecture{nearest(name, ARCHITECTURES)}; choose from: {', '.join(ARCHITECTURES)}"
    )
