"""Stage one: the autoencoder that turns pictures into latents an eighth of their size."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.nn import functional

from demo.pictures import grid, loss_curve, psnr, to_pixels, to_tensor
from demo.training import Budget, Schedule, State, fit, one_thread_an_operator

KL_WEIGHT = 3e-4  # per latent number: enough noise that the decoder forgives a latent that is a little off
CROPPED = 0.75  # share of the budget spent on crops of half the side: four times the steps


def autoencoder_loss(modules: dict[str, nn.Module], pictures: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return L1 + 2 MSE of the reconstruction plus a little KL.

    ``pictures``: float32 [B,3,H,W] from -1 to 1; ``noise``: float32 [B,C,H/8,W/8] from the normal distribution.
    """
    vae = modules["vae"]
    with torch.autocast("cpu", torch.bfloat16):
        moments = vae.quant_conv(vae.encoder(pictures))
        mean, log_variance = moments.float().chunk(2, dim=1)
        log_variance = log_variance.clamp(-30, 20)
        decoded = vae.decode(mean + noise * (0.5 * log_variance).exp(), return_dict=False)[0].float()
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
    return functional.l1_loss(decoded, pictures) + 2 * functional.mse_loss(decoded, pictures) + KL_WEIGHT * kl


def encode(vae: AutoencoderKL, pixels: np.ndarray, workers: int = 1, batch: int = 16) -> torch.Tensor:
    """Return the mean latents, unscaled, float32 [N,C,h,w], of uint8 pictures [N,H,W,3]."""

    def part(first: int) -> torch.Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            moments = vae.quant_conv(vae.encoder(to_tensor(pixels[first : first + batch])))
        return moments.float().chunk(2, dim=1)[0]

    with one_thread_an_operator(), ThreadPoolExecutor(workers) as pool:
        return torch.cat(list(pool.map(part, range(0, len(pixels), batch))))


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, pixels: np.ndarray, batch: int = 32) -> np.ndarray:
    """Return uint8 pictures [N,H,W,3] after a trip through the latents, in float32."""
    parts = []
    for first in range(0, len(pixels), batch):
        latent = vae.encode(to_tensor(pixels[first : first + batch])).latent_dist.mean
        parts.append(to_pixels(vae.decode(latent).sample))
    return np.concatenate(parts)


def _crop(picture: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    y, x = rng.integers(picture.shape[0] - side + 1, size=2)
    return picture[y : y + side, x : x + side]


def draw_crops(
    pixels: np.ndarray, channels: int, batch: int, seed: int, step: int, spent: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pictures of one step, or crops of them early on, and the noise for their latents."""
    rng = np.random.default_rng((seed, step))
    side = pixels.shape[1] // 2 if spent < CROPPED else pixels.shape[1]
    pictures = np.stack([_crop(pixels[rng.integers(len(pixels))], side, rng) for _ in range(batch)])
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    return to_tensor(pictures), torch.randn(batch, channels, side // 8, side // 8, generator=generator)


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
    workers: int = 1,
    every_minutes: float = 4.0,
    compiled: bool = False,
) -> State:
    """Train on uint8 ``pixels`` [N,H,W,3], judge on ``unseen``; returns the state, the mean weights in ``vae``."""
    state = State({"vae": vae})
    path = work / "autoencoder.safetensors"
    if resume and path.exists():
        state.load(path)

    def checkpoint(state: State) -> None:
        state.save(path)
        state.swap()
        seen = reconstruct(vae, unseen[:64])
        state.swap()
        print(f"autoencoder: {psnr(unseen[:64], seen):.2f} dB on unseen scenes", file=sys.stderr, flush=True)
        pairs = np.stack([unseen[:16], seen[:16]], axis=1).reshape(-1, *unseen.shape[1:])
        grid(pairs, work / "autoencoder.png", 8)
        loss_curve(state.losses, work / "autoencoder_loss.png", "autoencoder")

    batch_of = partial(draw_crops, pixels, vae.config.latent_channels, batch, seed)
    fit(state, batch_of, autoencoder_loss, Schedule(rate), budget, checkpoint, workers, every_minutes, compiled)
    state.swap()
    return state
