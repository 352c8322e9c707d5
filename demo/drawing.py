"""Pictures of many captions from either pipeline: the compiled one, or diffusers'."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

import schedulers
from backends.diffusers import DiffusersBackend
from demo.judge_config import EvaluateConfig
from models.source import check_model
from runtime.artifact import Artifact
from runtime.picture import to_uint8
from runtime.pipeline import Pipeline, Request
from utils.config import BaselineConfig
from utils.errors import UserError

BATCH = 8  # pictures that diffusers makes at once


class Source(Protocol):
    """What makes pictures. ``name`` and ``digest`` are the model's, ``sampler`` the label of the one in use."""

    pipeline: str
    name: str
    digest: str
    sampler: str

    def draw(self, captions: Sequence[str], seeds: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield a picture, uint8 [H,W,3], of each caption and seed."""


class Compiled:
    """The pipeline of an artifact.

    Raises:
        UserError: the artifact or the sampler can't be used.
    """

    pipeline = "compiled"

    def __init__(self, config: EvaluateConfig, folder: Path) -> None:
        self.config = config
        artifact = Artifact(folder)
        self.name, self.digest = artifact.manifest.model_name, artifact.manifest.model_digest
        self.sampler = self._request("").scheduler(artifact.manifest).label  # refuses before anything big is loaded
        self._pipeline = Pipeline(artifact, "auto", config.num_threads)

    def _request(self, caption: str) -> Request:
        return Request(
            prompt=caption,
            steps=self.config.steps,
            guidance_scale=self.config.guidance_scale,
            scheduler_label=self.config.scheduler_label,
        )

    def draw(self, captions: Sequence[str], seeds: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield a picture, uint8 [H,W,3], of each caption and seed."""
        for caption, seed in zip(captions, seeds, strict=True):
            *_, last = self._pipeline.sample(self._request(caption), [seed])
            yield to_uint8(self._pipeline.decode(last.x_t))[0]


class Diffusers:
    """A checkpoint in diffusers, several pictures at once.

    Raises:
        UserError: the checkpoint or the sampler can't be used.
    """

    pipeline = "diffusers"

    def __init__(self, config: EvaluateConfig, model: str) -> None:
        if config.scheduler_label is not None:
            schedulers.resolve_label(config.scheduler_label)
        check_model(model)
        self._backend = DiffusersBackend.load(
            BaselineConfig(
                model=model,
                steps=config.steps,
                guidance_scale=config.guidance_scale,
                scheduler_label=config.scheduler_label,
                num_threads=config.num_threads,
                output_dir=Path(tempfile.gettempdir()),  # not used, and always to be written
            )
        )
        self._backend.pipe.set_progress_bar_config(disable=True)  # the bar is that of all pictures
        self.name, self.digest = self._backend.checkpoint.name, self._backend.checkpoint.digest
        self.sampler = self._backend.sampler.label

    def draw(self, captions: Sequence[str], seeds: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield a picture, uint8 [H,W,3], of each caption and seed."""
        for start in range(0, len(captions), BATCH):
            yield from self._draw_batch(captions[start : start + BATCH], seeds[start : start + BATCH])

    @torch.no_grad()
    def _draw_batch(self, captions: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        backend = self._backend
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        contexts, negative_contexts = zip(*(backend.encode(caption, "") for caption in captions), strict=True)
        latents = backend.pipe(
            prompt_embeds=torch.cat(contexts),
            negative_prompt_embeds=None if negative_contexts[0] is None else torch.cat(negative_contexts),
            latents=torch.cat([torch.randn(backend.latent_shape, generator=each) for each in generators]),
            generator=generators,
            num_inference_steps=backend.steps,
            guidance_scale=backend.guidance_scale,
            height=backend.height,
            width=backend.width,
            output_type="latent",
        ).images
        if not torch.isfinite(latents).all():
            raise UserError("the latent has NaN or Inf; try another --scheduler-label")
        images = backend.pipe.vae.decode(latents / backend.checkpoint.vae_scaling_factor, return_dict=False)[0]
        return to_uint8(backend.pipe.image_processor.postprocess(images, output_type="np"))


def open_source(config: EvaluateConfig) -> Source:
    """Return the pipeline that the configuration names, loaded.

    Raises:
        UserError: it can't be used.
    """
    if config.artifacts_dir is not None:
        return Compiled(config, config.artifacts_dir)
    return Diffusers(config, str(config.model))
