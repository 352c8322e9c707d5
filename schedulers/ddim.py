"""DDIM (arXiv:2010.02502), without added noise (eta = 0). Equals diffusers' DDIMScheduler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from schedulers.discrete import DiscreteScheduler
from schedulers.noise import Noise
from schedulers.noise_schedule import alphas_cumprod, predict
from schedulers.threshold import ThresholdSettings
from utils.errors import UserError


@dataclass(frozen=True, kw_only=True)
class DDIMSettings(ThresholdSettings):
    """Keys and defaults of diffusers' DDIMScheduler."""

    clip_sample: bool = True
    clip_sample_range: float = 1.0
    set_alpha_to_one: bool = True
    rescale_betas_zero_snr: bool = False


class DDIMScheduler(DiscreteScheduler):
    """Steps along the deterministic process that has DDPM's marginals."""

    label = "ddim"
    class_name = "DDIMScheduler"
    a1111_name = "DDIM"
    settings: DDIMSettings

    def __init__(self, config: Mapping[str, Any]) -> None:
        settings = DDIMSettings.from_config(config)
        alpha_bar = alphas_cumprod(settings, rescale=settings.rescale_betas_zero_snr)
        super().__init__(settings, alpha_bar, settings.set_alpha_to_one)

    @property
    def is_linear(self) -> bool:
        """Whether x_0 is neither clipped nor thresholded."""
        return not (self.settings.thresholding or self.settings.clip_sample)

    def _plan(self, steps: int) -> None:
        self.timesteps = self._visit(steps)
        if self.settings.prediction_type == "epsilon" and self._alpha_bar[self.timesteps[0]] == 0:
            raise UserError(
                "the model starts from pure noise (rescale_betas_zero_snr) but predicts epsilon, which says nothing "
                "about the picture there; it needs prediction_type v_prediction or timestep_spacing leading"
            )
        self.sigmas = self._noise_levels(int(self.timesteps[-1]) - self._stride)

    def _advance(self, model_output: np.ndarray, i: int, x: np.ndarray, noise: Noise | None) -> np.ndarray:
        config = self.settings
        t = int(self.timesteps[i])
        here, there = self._alpha_bar_at(t), self._alpha_bar_at(t - self._stride)
        x_0, eps = predict(config.prediction_type, model_output, x, np.sqrt(here), np.sqrt(np.float32(1) - here))
        if config.thresholding:
            x_0 = config.threshold(x_0)
        elif config.clip_sample:
            x_0 = np.clip(x_0, -config.clip_sample_range, config.clip_sample_range)
        return np.sqrt(there) * x_0 + np.sqrt(np.float32(1) - there) * eps
