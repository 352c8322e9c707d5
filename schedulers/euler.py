"""Euler's method in sigma (arXiv:2206.00364, Algorithm 2 without churn). Equals diffusers' EulerDiscreteScheduler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from schedulers.noise import Noise
from schedulers.noise_schedule import spaced_timesteps
from schedulers.sigma import SigmaScheduler, SigmaSettings


@dataclass(frozen=True, kw_only=True)
class EulerSettings(SigmaSettings):
    """Keys and defaults of diffusers' EulerDiscreteScheduler."""

    interpolation_type: str = "linear"
    timestep_type: str = "discrete"

    CHOICES: ClassVar = {
        **SigmaSettings.CHOICES,
        "interpolation_type": ("linear", "log_linear"),
        "timestep_type": ("discrete", "continuous"),
    }


class EulerScheduler(SigmaScheduler):
    """Steps along dx / dsigma."""

    label = "euler"
    class_name = "EulerDiscreteScheduler"
    a1111_name = "Euler"
    settings: EulerSettings

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(EulerSettings.from_config(config))

    def _plan(self, steps: int) -> None:
        config, training = self.settings, self._training_sigmas
        timesteps = spaced_timesteps(
            config.timestep_spacing, steps, config.num_train_timesteps, config.steps_offset, rounded=False
        ).astype(np.float32)
        if config.interpolation_type == "linear":
            sigmas = np.interp(timesteps, np.arange(len(training)), training)
        else:  # one level more than there are timesteps, so the run does not end at 0
            sigmas = np.exp(np.linspace(np.log(training[-1]), np.log(training[0]), steps + 1))
        chosen = config.chosen_sigmas(sigmas[0], sigmas[-1], steps)
        if chosen is not None:
            sigmas, timesteps = chosen, self._timesteps_at(chosen)
        self.sigmas = config.with_final(sigmas, training)
        if config.timestep_type == "continuous" and config.prediction_type == "v_prediction":
            timesteps = np.log(self.sigmas[:-1]) / 4  # the EDM model's own clock
        self.timesteps = timesteps.astype(np.float32)
        self._set_init_noise_sigma()

    def _advance(self, model_output: np.ndarray, i: int, x: np.ndarray, noise: Noise | None) -> np.ndarray:
        return x + (self.sigmas[i + 1] - self.sigmas[i]) * self._eps(model_output, i, x)
