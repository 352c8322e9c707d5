"""Stage one: the autoencoder that turns pictures into latents an eighth of their size."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional

from demo.pictures import grid, loss_curve, psnr, to_pixels, to_tensor
from demo.training import Budget, Schedule, State, fit

KL_WEIGHT = 3e-4  # per latent number: enough noise that the decoder forgives a latent that is a little off


def autoencoder_loss(vae: AutoencoderKL, pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return L1 + 2 MSE of the reconstruction plus a little KL. ``pictures``: float32 [B,3,H,W] from -1 to 1."""
    with torch.autocast("cpu", torch.bfloat16):
        moments = vae.quant_conv(vae.encoder(pictures))
        mean, log_variance = moments.float().chunk(2, dim=1)
        log_variance = log_variance.clamp(-30, 20)
        noise = torch.randn(mean.shape, generator=generator)
        decoded = vae.decode(mean + noise * (0.5 * log_variance).exp(), return_dict=False)[0].float()
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
    return functional.l1_loss(decoded, pictures) + 2 * functional.mse_loss(decoded, pictures) + KL_WEIGHT * kl


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: np.ndarray, batch: int = 32) -> torch.Tensor:
    """Return the mean latents, unscaled, float32 [N,4,h,w], of uint8 pictures [N,H,W,3]."""
    parts = []
    for first in range(0, len(pixels), batch):
        with torch.autocast("cpu", torch.bfloat16):
            moments = vae.quant_conv(vae.encoder(to_tensor(pixels[first : first + batch])))
        parts.append(moments.float().chunk(2, dim=1)[0])
    return torch.cat(parts)


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, pixels: np.ndarray, batch: int = 32) -> np.ndarray:
    """Return uint8 pictures [N,H,W,3] after a trip through the latents, in float32."""
    parts = []
    for first in range(0, len(pixels), batch):
        latent = vae.encode(to_tensor(pixels[first : first + batch])).latent_dist.mean
        parts.append(to_pixels(vae.decode(latent).sample))
    return np.concatenate(parts)


def train_autoencoder(
    vae: AutoencoderKL,
    pixels: np.ndarray,
    unseen: np.ndarray,
    work: Path,
    budget: Budget,
    *,
    batch: int = 8,
    rate: float = 1e-3,
    seed: int = 0,
    resume: bool = False,
) -> State:
    """Train on uint8 ``pixels`` [N,H,W,3], judge on ``unseen``; returns the state, the mean weights in ``vae``."""
    state = State({"vae": vae})
    path = work / "autoencoder.safetensors"
    if resume and path.exists():
        state.load(path)

    def loss_of(step: int, spent: float) -> torch.Tensor:
        rng = np.random.default_rng((seed, step))
        chosen = np.sort(rng.choice(len(pixels), batch, replace=False))
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        return autoencoder_loss(vae, to_tensor(pixels[chosen]), generator)

    def checkpoint(state: State) -> None:
        state.save(path)
        state.swap()
        seen = reconstruct(vae, unseen[:64])
        state.swap()
        print(f"autoencoder: {psnr(unseen[:64], seen):.2f} dB on unseen scenes", file=sys.stderr, flush=True)
        pairs = np.stack([unseen[:16], seen[:16]], axis=1).reshape(-1, *unseen.shape[1:])
        grid(pairs, work / "autoencoder.png", 8)
        loss_curve(state.losses, work / "autoencoder_loss.png", "autoencoder")

    fit(state, loss_of, Schedule(rate), budget, checkpoint)
    state.swap()
    return state
