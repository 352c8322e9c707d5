"""Stage two: the UNet and the text encoder learn to turn noise into the latents of what a caption says."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from transformers import CLIPTextModel, PreTrainedTokenizerBase

from demo.pictures import grid, loss_curve, to_pixels
from demo.training import Budget, Schedule, State, fit

NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
}
DROPOUT = 0.1  # share of captions replaced by nothing, for classifier-free guidance
GAMMA = 5.0  # Min-SNR weighting (Hang et al. 2023, section 3.4) with one added: more weight where shapes are decided
FEW_TOKENS = 1024  # so few that attention with stored scores trains faster on a CPU than the fused kind
Ramp = tuple[float, float]  # a value for the first quarter of the budget, and one from half of it on
PAIRS: Ramp = (0.1, 0.45)  # share of scenes with two things in a batch
EVEN: Ramp = (1.0, 1.0)
PROMPTS = (
    "a red circle on a blue background",
    "a yellow star on a purple background",
    "a green square on a white background",
    "a big blue heart on a pink background",
    "a white cat on a green background",
    "a small black bird in the snow",
    "an orange fish in the sky",
    "a purple house on a meadow",
    "a red car on the beach",
    "a pink flower on a meadow",
    "a white boat at night",
    "a blue rocket under the stars",
    "a green tree in the snow",
    "a brown mushroom on the grass",
    "a red bird left of a blue house on a meadow",
    "a yellow cat on a green car on the beach",
)


@dataclass(frozen=True)
class Captioned:
    """The training set as stage two sees it: scaled latents, token ids, and which scenes hold two things."""

    latents: torch.Tensor  # float16 [N,C,h,w], of standard deviation 1
    ids: torch.Tensor  # int16 or int32 [N,77]
    pairs: np.ndarray | None = None  # bool [N]; None: all pictures are drawn alike


def tokenise(tokenizer: PreTrainedTokenizerBase, captions: Sequence[str]) -> torch.Tensor:
    """Return int64 ids [B,77], padded as Stable Diffusion pads."""
    length = tokenizer.model_max_length
    return tokenizer(
        list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids


def ddim(config: Mapping[str, Any] = NOISE) -> DDIMScheduler:
    """Return DDIM with the noise levels and the prediction type of a checkpoint's scheduler config."""
    return DDIMScheduler.from_config({"set_alpha_to_one": False, "steps_offset": 1, **config}, clip_sample=False)


def _at(ramp: Ramp, spent: float) -> float:
    return ramp[0] + (ramp[1] - ramp[0]) * min(1.0, max(0.0, 4 * spent - 1))


def choose_batch(data: Captioned, batch: int, spent: float, rng: np.random.Generator) -> np.ndarray:
    """Return indices of ``batch`` scenes: mostly lone things at first, more pairs once half the budget is spent.

    Where ``data`` knows of no pairs, none comes twice before each has come once.
    """
    if data.pairs is None:
        return np.resize(rng.permutation(len(data.latents)), batch)
    share = _at(PAIRS, spent)
    lone, pair = np.flatnonzero(~data.pairs), np.flatnonzero(data.pairs)
    count = min(round(batch * share), batch - 1)
    return rng.permutation(np.concatenate([rng.choice(lone, batch - count), rng.choice(pair, count)]))


def draw_batch(
    data: Captioned, nothing: torch.Tensor, batch: int, levels: int, focus: Ramp, seed: int, step: int, spent: float
) -> tuple[torch.Tensor, ...]:
    """Return latents, ids (some of them those of ``nothing``, the empty caption), noise and timesteps of one step.

    Timesteps are drawn from 0 to ``levels`` - 1: evenly with a ``focus`` of 1, more noisy ones below, fewer above.
    """
    rng = np.random.default_rng((seed, step))
    chosen = torch.from_numpy(choose_batch(data, batch, spent, rng))
    dropped = torch.from_numpy(rng.random(batch) < DROPOUT)[:, None]
    ids = torch.where(dropped, nothing, data.ids[chosen].long())
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    noise = torch.randn(batch, *data.latents.shape[1:], generator=generator)
    timesteps = (levels * torch.rand(batch, generator=generator) ** _at(focus, spent)).long().clamp(max=levels - 1)
    return data.latents[chosen].float(), ids, noise, timesteps


def _target(
    scheduler: DDIMScheduler, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the UNet is to predict, [B,C,h,w], and the weight of its squared error, [B]."""
    level = scheduler.alphas_cumprod[timesteps]
    snr = level / (1 - level)
    if scheduler.config.prediction_type == "epsilon":
        return noise, (GAMMA / snr).clamp(max=1)
    weight = 1 + snr.clamp(max=GAMMA)  # of the error in the latents
    if scheduler.config.prediction_type == "sample":
        return latents, weight / (1 + GAMMA)
    return scheduler.get_velocity(latents, noise, timesteps), weight / (1 + snr)


def denoising_loss(
    scheduler: DDIMScheduler,
    modules: dict[str, nn.Module],
    latents: torch.Tensor,
    ids: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
) -> torch.Tensor:
    """Return the weighted squared error of what the UNet predicts: noise, latents or the velocity between them.

    The velocity is that of Salimans and Ho 2022, appendix D. ``latents`` and ``noise``: float32 [B,C,h,w]; ``ids``:
    int64 [B,77]; ``timesteps``: int64 [B], from 0.
    """
    noisy = scheduler.add_noise(latents, noise, timesteps)
    target, weight = _target(scheduler, latents, noise, timesteps)
    with torch.autocast("cpu", torch.bfloat16):
        context = modules["text_encoder"](ids).last_hidden_state
        predicted = modules["unet"](noisy, timesteps, context, return_dict=False)[0]
    return (((predicted.float() - target) ** 2).mean(dim=(1, 2, 3)) * weight).mean()


@torch.no_grad()
def sample(
    parts: tuple[AutoencoderKL, CLIPTextModel, UNet2DConditionModel, PreTrainedTokenizerBase],
    prompts: Sequence[str],
    scheduler: DDIMScheduler,
    steps: int = 20,
    guidance: float = 5.0,
    seed: int = 0,
) -> np.ndarray:
    """Draw each prompt with ``scheduler``; returns uint8 [B,H,W,3]."""
    vae, text_encoder, unet, tokenizer = parts
    scheduler.set_timesteps(steps)
    side = unet.config.sample_size
    latents = torch.randn(
        len(prompts), unet.config.in_channels, side, side, generator=torch.Generator().manual_seed(seed)
    )
    with torch.autocast("cpu", torch.bfloat16):
        ids = tokenise(tokenizer, ["" for _ in prompts] + list(prompts))
        context = text_encoder(ids).last_hidden_state
        for timestep in scheduler.timesteps:
            both = unet(torch.cat([latents, latents]), timestep, context).sample.float()
            without, said = both.chunk(2)
            latents = scheduler.step(without + guidance * (said - without), timestep, latents).prev_sample
        pictures = vae.decode(latents / vae.config.scaling_factor).sample
    return to_pixels(pictures)


def train_diffusion(
    parts: tuple[AutoencoderKL, CLIPTextModel, UNet2DConditionModel, PreTrainedTokenizerBase],
    data: Captioned,
    work: Path,
    budget: Budget,
    *,
    batch: int = 32,
    rate: float = 5e-4,
    seed: int = 0,
    resume: bool = False,
    workers: int = 1,
    every_minutes: float = 4.0,
    compiled: bool = False,
    focus: Ramp = EVEN,
    keep: Callable[[], None] = lambda: None,
    scheduler: DDIMScheduler | None = None,
    prompts: Sequence[str] = PROMPTS,
    origin: str = "",
) -> State:
    """Train the UNet and the text encoder together; leaves the mean weights in them and returns the state.

    At each checkpoint ``prompts`` are drawn and ``keep`` is called, both with the mean weights in place. ``scheduler``
    tells the noise and what is predicted, the demo model's own by default. ``focus``: see ``draw_batch``; ``origin``:
    see ``State``.
    """
    scheduler = ddim() if scheduler is None else scheduler
    _, text_encoder, unet, tokenizer = parts
    if data.latents[0, 0].numel() <= FEW_TOKENS:
        unet.set_attn_processor(AttnProcessor())
    text_encoder.set_attn_implementation("eager")
    state = State({"unet": unet, "text_encoder": text_encoder}, origin=origin)
    path = work / "diffusion.safetensors"
    if resume and path.exists():
        state.load(path)
    nothing = tokenise(tokenizer, [""])

    def checkpoint(state: State) -> None:
        state.save(path)
        state.swap()
        pictures = sample(parts, prompts, scheduler)
        keep()
        state.swap()
        grid(pictures, work / "samples.png", 4, prompts)
        loss_curve(state.losses, work / "diffusion_loss.png", "diffusion")
        print(f"diffusion: {state.step} steps, samples drawn", file=sys.stderr, flush=True)

    batch_of = partial(draw_batch, data, nothing, batch, scheduler.config.num_train_timesteps, focus, seed)
    loss_of = partial(denoising_loss, scheduler)
    fit(state, batch_of, loss_of, Schedule(rate), budget, checkpoint, workers, every_minutes, compiled)
    state.swap()
    return state
