"""The parts that are compiled, as modules over positional tensors of fixed shapes.

Each computes what diffusers' StableDiffusionPipeline computes with the same part, and holds no parameter that it does
not use. h and w are the latent's height and width, C the width of the text encoder.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from models.assembly import Checkpoint
from models.token_merging import apply_token_merging
from utils.config import TokenMerging

NUM_TRAIN_TIMESTEPS = 1000


@dataclass(frozen=True, eq=False)
class Function:
    """One entry of a component: its name, names and example tensors of its inputs.

    The inputs named in ``fixed`` stay the same over all steps of a picture.
    """

    name: str
    inputs: tuple[tuple[str, torch.Tensor], ...]
    fixed: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Component:
    """A module and the functions it is compiled into. All of them use the same parameters.

    Where ``overflows``, float16 can't hold all that it computes.
    """

    name: str
    module: nn.Module
    functions: tuple[Function, ...]
    overflows: bool = False


class TextEncoder(nn.Module):
    """CLIP's text transformer (Radford et al., Learning Transferable Visual Models, 2021) up to its final norm."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        model = checkpoint.text_encoder
        self.token_embedding = model.embeddings.token_embedding
        self.position_embedding = model.embeddings.position_embedding
        self.encoder = model.encoder
        self.final_layer_norm = model.final_layer_norm

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Encode token ids, int64 [B, L], to float32 [B, L, C]. A token sees itself and the tokens before it."""
        positions = self.position_embedding.weight[: ids.shape[1]]
        x = self.token_embedding(ids) + positions
        x = self.encoder(x, attention_mask=None, is_causal=True).last_hidden_state
        return self.final_layer_norm(x)


class UNet(nn.Module):
    """The denoiser (Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, 2022)."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.unet = checkpoint.unet

    def forward(self, latent: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Predict epsilon or v, [B, 4, h, w], from latent [B, 4, h, w], timestep [1] and context [B, L, C], float32."""
        return self.unet(latent, timestep, context, return_dict=False)[0]


class VaeDecoder(nn.Module):
    """The decoder of the autoencoder, from the sampler's latent to a picture."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.scaling_factor = checkpoint.vae_scaling_factor
        self.post_quant_conv = checkpoint.vae.post_quant_conv
        self.decoder = checkpoint.vae.decoder

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """Decode a latent, float32 [B, 4, h, w], to a picture, float32 [B, H, W, 3] in [0, 1]."""
        z = latent / self.scaling_factor
        if self.post_quant_conv is not None:
            z = self.post_quant_conv(z)
        picture = (self.decoder(z) * 0.5 + 0.5).clamp(0, 1)
        return picture.permute(0, 2, 3, 1)


class VaeEncoder(nn.Module):
    """The encoder of the autoencoder, from a picture to the mean of its latent."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.scaling_factor = checkpoint.vae_scaling_factor
        self.latent_channels = checkpoint.latent_channels
        self.encoder = checkpoint.vae.encoder
        self.quant_conv = checkpoint.vae.quant_conv

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        """Encode a picture, float32 [B, H, W, 3] in [0, 1], to a scaled latent, float32 [B, 4, h, w]."""
        moments = self.encoder(picture.permute(0, 3, 1, 2) * 2 - 1)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        return moments[:, : self.latent_channels] * self.scaling_factor


def components(
    checkpoint: Checkpoint, height: int, width: int, batch_size: int, merging: TokenMerging | None = None
) -> list[Component]:
    """Return text encoder, UNet and VAE decoder for pictures of ``height`` x ``width`` pixels.

    The UNet has the functions ``guided``, for ``batch_size`` pictures with classifier-free guidance (Ho and Salimans,
    2022; unconditional half first), and ``unguided``. Prompts are encoded and pictures decoded one at a time. With
    ``merging`` the checkpoint's UNet merges tokens from now on.

    Raises:
        UserError: the size is no multiple of the VAE's scale, or there are no tokens to merge.
    """
    h, w = checkpoint.latent_size(height, width)
    if merging is not None:
        apply_token_merging(checkpoint.unet, merging, h, w)
    length, channels = checkpoint.tokenizer.model_max_length, checkpoint.latent_channels
    random = torch.Generator().manual_seed(0)

    def unet(name: str, batch: int) -> Function:
        latent = torch.randn(batch, channels, h, w, generator=random)
        timestep = torch.rand(1, generator=random) * (NUM_TRAIN_TIMESTEPS - 1)
        context = torch.randn(batch, length, checkpoint.text_encoder.config.hidden_size, generator=random)
        return Function(name, (("latent", latent), ("timestep", timestep), ("context", context)), fixed=("context",))

    ids = torch.randint(checkpoint.text_encoder.config.vocab_size, (1, length), generator=random)
    latent = torch.randn(1, channels, h, w, generator=random)
    return [
        Component("text_encoder", TextEncoder(checkpoint).eval(), (Function("encode", (("ids", ids),)),)),
        Component("unet", UNet(checkpoint).eval(), (unet("guided", 2 * batch_size), unet("unguided", batch_size))),
        Component(
            "vae_decoder",
            VaeDecoder(checkpoint).eval(),
            (Function("decode", (("latent", latent),)),),
            overflows=bool(checkpoint.vae.config.get("force_upcast", True)),
        ),
    ]


def vae_encoder(checkpoint: Checkpoint, height: int, width: int) -> Component:
    """Return the VAE's encoder, whose function ``encode`` takes one picture of ``height`` x ``width`` pixels.

    Raises:
        UserError: the size is no multiple of the VAE's scale.
    """
    checkpoint.latent_size(height, width)
    picture = torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(0))
    return Component("vae_encoder", VaeEncoder(checkpoint).eval(), (Function("encode", (("picture", picture),)),))
