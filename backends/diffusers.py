"""Diffusers' own StableDiffusionPipeline, eager or through torch.compile."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import logging
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from unittest import mock

import diffusers
import numpy as np
import tomesd
import torch
import transformers
from diffusers.models.attention_processor import AttnProcessor
from diffusers.schedulers import scheduling_euler_ancestral_discrete as ancestral

import schedulers
from models.assembly import quiet
from models.checkpoint import Checkpoint, load_checkpoint
from models.token_merging import require_attention
from runtime.recording import STEPS, Phase
from utils.config import BaselineConfig, TokenMerging
from utils.cpu import physical_cores
from utils.errors import UserError

COMPILE_MODES = {"cpu": "default", "cuda": "max-autotune"}  # of torch.compile


@dataclass(frozen=True, eq=False)
class Generated:
    """Pictures made at once, uint8 [N, H, W, 3], their latents before decoding, float32 [N, 4, h, w], and their time.

    A step is one of the scheduler's, UNet call included.
    """

    pictures: np.ndarray
    latents: np.ndarray
    text: Phase
    steps: list[Phase]
    decode: Phase

    @property
    def picture(self) -> np.ndarray:
        """The first picture, uint8 [H, W, 3]."""
        return self.pictures[0]

    @property
    def latent(self) -> np.ndarray:
        """The first one's latent, float32 [4, h, w]."""
        return self.latents[0]

    @property
    def phases(self) -> list[Phase]:
        """Text, steps and decode in their order."""
        return [self.text, *self.steps, self.decode]


class DiffusersBackend:
    """A checkpoint in diffusers' pipeline, set up as ``config`` says.

    Raises:
        UserError: the device, attention, compiler, scheduler or size is not to be had here.
    """

    def __init__(self, config: BaselineConfig, checkpoint: Checkpoint) -> None:
        self.device = resolve_device(config.device)
        _check_requirements(config, self.device)
        self.checkpoint = checkpoint
        self.dtype = getattr(torch, config.dtype)
        self.height, self.width = checkpoint.size(config.height, config.width)
        self.latent_shape = (1, checkpoint.latent_channels, *checkpoint.latent_size(self.height, self.width))
        self.steps, self.guidance_scale = config.steps, config.guidance_scale
        torch.set_num_threads(physical_cores() if config.num_threads is None else config.num_threads)
        self.pipe = checkpoint.pipeline()
        with quiet():
            for module in (self.pipe.text_encoder, self.pipe.unet, self.pipe.vae):
                module.to(self.device, self.dtype)
        self.sampler = self._choose_scheduler(config.scheduler_label)
        self._set_up(config)
        self.encode = functools.lru_cache(self._encode)

    @classmethod
    def load(cls, config: BaselineConfig) -> DiffusersBackend:
        """Load ``config.model`` and set the pipeline up.

        Raises:
            UserError: the checkpoint can't be used, or what the class itself refuses.
        """
        _check_requirements(config, resolve_device(config.device))
        return cls(config, load_checkpoint(config.model))

    def _choose_scheduler(self, label: str | None) -> schedulers.Scheduler:
        """Give the pipeline the diffusers class of our sampler ``label``, and return our sampler."""
        config = self.checkpoint.scheduler_config
        name = schedulers.default_label(config) if label is None else label
        sampler = schedulers.create(name, config)
        sampler.set_timesteps(self.steps)  # refuses more steps than it can make
        if getattr(sampler.settings, "use_karras_sigmas", False):
            config = {**config, "use_karras_sigmas": True, "use_exponential_sigmas": False}
        self.pipe.scheduler = getattr(diffusers, sampler.class_name).from_config(config)
        return sampler

    def _set_up(self, config: BaselineConfig) -> None:
        transformers.utils.logging.get_logger("transformers.tokenization_utils_base").setLevel(logging.ERROR)
        self.pipe.set_progress_bar_config(disable=sys.stderr is None or not sys.stderr.isatty(), leave=False)
        for module in (self.pipe.unet, self.pipe.vae):
            module.to(memory_format=torch.channels_last)
        if config.attention == "math":
            self.pipe.text_encoder.set_attn_implementation("eager")
            self.pipe.unet.set_attn_processor(AttnProcessor())
            self.pipe.vae.set_attn_processor(AttnProcessor())
        elif config.attention == "xformers":
            self.pipe.enable_xformers_memory_efficient_attention()
        if config.apply_tome:
            ratio = TokenMerging.ratio if config.tome_ratio is None else config.tome_ratio
            require_attention(self.pipe.unet, TokenMerging.max_downsample)
            tomesd.apply_patch(self.pipe, ratio=ratio, use_rand=False)
        if config.compile:
            self.pipe.unet.compile(mode=COMPILE_MODES[self.device])

    def _encode(self, prompt: str, negative_prompt: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        with torch.no_grad():
            return self.pipe.encode_prompt(prompt, self.device, 1, self.guidance_scale > 1, negative_prompt)

    def generate(
        self, prompt: str, negative_prompt: str, seed: int, steps: int | None = None, count: int = 1
    ) -> Generated:
        """Make ``count`` pictures at once, of the config's steps or others. Prompts are encoded the first time only.

        Picture i has the noise of a CPU ``torch.Generator`` seeded ``seed`` + i, drawn in float32 whatever the dtype.

        Raises:
            UserError: the latent has NaN or Inf.
        """
        start = time.perf_counter()
        context, negative_context = self.encode(prompt, negative_prompt)
        encoded = time.perf_counter()
        seeds = range(seed, seed + count)
        latents, phases = self._sample(context, negative_context, seeds, self.steps if steps is None else steps)
        sampled = time.perf_counter()
        with torch.no_grad():
            pictures = self._decode(latents)
        text, decode = Phase("text", "text", start, encoded), Phase("decode", "decode", sampled, time.perf_counter())
        return Generated(pictures, latents.float().cpu().numpy(), text, phases, decode)

    def _sample(
        self, context: torch.Tensor, negative_context: torch.Tensor | None, seeds: Sequence[int], steps: int
    ) -> tuple[torch.Tensor, list[Phase]]:
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        noise = torch.cat([torch.randn(self.latent_shape, generator=generator) for generator in generators])
        times = [time.perf_counter()]

        def note_time(pipe: object, step: int, timestep: object, values: dict) -> dict:
            self._synchronise()
            times.append(time.perf_counter())
            return values

        with _float32_noise():
            result = self.pipe(
                prompt_embeds=context,
                negative_prompt_embeds=negative_context,
                latents=noise.to(self.dtype),
                generator=generators,
                num_images_per_prompt=len(generators),
                num_inference_steps=steps,
                guidance_scale=self.guidance_scale,
                height=self.height,
                width=self.width,
                output_type="latent",
                callback_on_step_end=note_time,
            )
        if not torch.isfinite(result.images).all():
            raise UserError("the latent has NaN or Inf; try another --scheduler-label or --dtype float32")
        spans = enumerate(itertools.pairwise(times), 1)
        return result.images, [Phase(STEPS, f"step {number}", *span) for number, span in spans]

    def _decode(self, latents: torch.Tensor) -> np.ndarray:
        images = self.pipe.vae.decode(latents / self.checkpoint.vae_scaling_factor, return_dict=False)[0]
        pictures = self.pipe.image_processor.postprocess(images.float(), output_type="np")
        return (pictures * 255).round().astype(np.uint8)

    def _synchronise(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def resolve_device(device: str) -> str:
    """Return cpu or cuda for auto, cpu or cuda.

    Raises:
        UserError: cuda is wanted, and PyTorch finds no GPU.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no CUDA GPU here; use --device cpu")
    return device


def _check_requirements(config: BaselineConfig, device: str) -> None:
    if config.attention == "xformers" and importlib.util.find_spec("xformers") is None:
        raise UserError("--attention xformers: the package xformers is not installed; install it or use sdpa")
    if config.attention == "xformers" and device == "cpu":
        raise UserError("--attention xformers needs a CUDA GPU; use sdpa")
    if config.compile and not any(shutil.which(name) for name in ("c++", "g++", "clang++", "cl")):
        raise UserError("--compile needs a C++ compiler such as g++, and none was found; install one")


@contextlib.contextmanager
def _float32_noise() -> Iterator[None]:
    """Let the one stochastic sampler draw its noise in float32 and cast it: a seed is one picture in any dtype."""
    draw = ancestral.randn_tensor

    def draw_float32(shape, generator=None, device=None, dtype=None, layout=None):  # type: ignore[no-untyped-def]
        return draw(shape, generator=generator, device=device, dtype=torch.float32, layout=layout).to(dtype)

    with mock.patch.object(ancestral, "randn_tensor", draw_float32):
        yield
