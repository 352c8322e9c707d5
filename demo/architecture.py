"""The demo model's networks, in diffusers' classes, and their export as a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel


@dataclass(frozen=True)
class Architecture:
    """Widths of the three networks. ``size`` is the picture's side in pixels, a multiple of 8."""

    size: int = 128
    latent_channels: int = 8
    vae: tuple[int, ...] = (32, 32, 64, 96)
    vae_groups: int = 8
    unet: tuple[int, ...] = (128, 192)
    heads: tuple[int, ...] = (4, 6)
    unet_groups: int = 16
    text_width: int = 160
    text_layers: int = 3
    text_heads: int = 5

    def autoencoder(self) -> AutoencoderKL:
        """Return the autoencoder: [B,3,size,size] in [-1,1] <-> latents [B,latent_channels,size/8,size/8]."""
        return AutoencoderKL(
            sample_size=self.size,
            block_out_channels=self.vae,
            down_block_types=["DownEncoderBlock2D"] * len(self.vae),
            up_block_types=["UpDecoderBlock2D"] * len(self.vae),
            latent_channels=self.latent_channels,
            layers_per_block=1,
            norm_num_groups=self.vae_groups,
        )

    def denoiser(self) -> UNet2DConditionModel:
        """Return the UNet, which attends to the caption at every resolution but the lowest (and in the middle)."""
        attending = len(self.unet) - 1
        return UNet2DConditionModel(
            sample_size=self.size // 8,
            in_channels=self.latent_channels,
            out_channels=self.latent_channels,
            block_out_channels=self.unet,
            down_block_types=["CrossAttnDownBlock2D"] * attending + ["DownBlock2D"],
            up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * attending,
            layers_per_block=1,
            cross_attention_dim=self.text_width,
            attention_head_dim=self.heads,  # diffusers' name for the number of heads
            norm_num_groups=self.unet_groups,
        )

    def text_encoder(self, vocabulary: int) -> CLIPTextModel:
        """Return CLIP's text model for a tokenizer whose last two entries are start and end of text."""
        return CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocabulary,
                hidden_size=self.text_width,
                intermediate_size=self.text_width * 8 // 3,
                num_hidden_layers=self.text_layers,
                num_attention_heads=self.text_heads,
                max_position_embeddings=77,
                hidden_act="quick_gelu",
                projection_dim=self.text_width,
                bos_token_id=vocabulary - 2,
                eos_token_id=vocabulary - 1,
                pad_token_id=vocabulary - 1,
            )
        )
