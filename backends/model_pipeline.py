"""Pictures from any three functions of arrays: the loop of inference.py around another engine."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

import schedulers
from backends.peer import Drawn
from runtime.artifact import TOKENIZER
from runtime.picture import to_uint8
from runtime.tokenizer import Tokenizer

PIPELINE = "pipeline.json"


class ModelPipeline:
    """Tokenizer, sampler and the models ``text_encoder``, ``unet`` and ``vae_decoder``, called as the components are.

    A model may overwrite its result by its next call. ``folder`` holds the tokenizer and ``pipeline.json``.

    Raises:
        UserError: an unknown sampler.
    """

    def __init__(self, folder: Path, models: Mapping[str, Callable[..., np.ndarray]], label: str | None) -> None:
        self.description = json.loads((folder / PIPELINE).read_text(encoding="utf-8"))
        self.latent_shape = tuple(self.description["latent_shape"])
        self.batch_size = int(self.description["batch_size"])
        config = self.description["scheduler"]
        self.scheduler = schedulers.create(schedulers.default_label(config) if label is None else label, config)
        self.tokenizer = Tokenizer(folder / TOKENIZER)
        self.text_encoder, self.unet, self.vae_decoder = (
            models[name] for name in ("text_encoder", "unet", "vae_decoder")
        )

    def draw(self, prompt: str, negative_prompt: str, seed: int, steps: int, guidance_scale: float) -> Drawn:
        """Draw as many pictures at once as the models take, of seeds from ``seed`` on.

        Raises:
            UserError: more steps than the sampler can make.
        """
        times = [time.perf_counter()]
        texts = (negative_prompt, prompt)
        contexts = [self.text_encoder(self.tokenizer.encode(text)).copy() for text in texts]
        context = np.repeat(np.concatenate(contexts), self.batch_size, axis=0)
        times.append(time.perf_counter())
        seeds = range(seed, seed + self.batch_size)
        noise = schedulers.per_picture([schedulers.NoiseGenerator(each) for each in seeds])
        latent = self._denoise(context, noise, steps, guidance_scale)
        times.append(time.perf_counter())
        pictures = np.stack([to_uint8(self.vae_decoder(x[None])[0]) for x in latent])
        times.append(time.perf_counter())
        text, unet, vae = (after - before for before, after in itertools.pairwise(times))
        return Drawn(pictures, text, unet, vae)

    def _denoise(self, context: np.ndarray, noise: schedulers.Noise, steps: int, guidance_scale: float) -> np.ndarray:
        self.scheduler.set_timesteps(steps)  # forgets the picture before
        x = noise((self.batch_size, *self.latent_shape)) * np.float32(self.scheduler.init_noise_sigma)
        for i, t in enumerate(self.scheduler.timesteps):
            model_input = self.scheduler.scale_model_input(x, i)
            both = self.unet(np.concatenate([model_input] * 2), np.array([t], np.float32), context)
            eps_uncond, eps_cond = np.split(both, 2)
            eps = eps_uncond + np.float32(guidance_scale) * (eps_cond - eps_uncond)
            x = self.scheduler.step(eps, i, x, noise)
        return x
