"""Euler with ancestral noise: step below the next noise level, then add noise up to it.

Equals diffusers' EulerAncestralDiscreteScheduler.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from schedulers.noise import Noise
from schedulers.noise_schedule import spaced_timesteps
from schedulers.sigma import RescaledSettings, SigmaScheduler


@dataclass(frozen=True, kw_only=True)
class EulerAncestralSettings(RescaledSettings):
    """Keys and defaults of diffusers' EulerAncestralDiscreteScheduler, which does not take prediction type sample."""

    CHOICES: ClassVar = {**RescaledSettings.CHOICES, "prediction_type": ("epsilon", "v_prediction")}


class EulerAncestralScheduler(SigmaScheduler):
    """Draws fresh noise at each step, the last one included (scaled by 0 there)."""

    label = "euler-ancestral"
    class_name = "EulerAncestralDiscreteScheduler"
    a1111_name = "Euler a"

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(EulerAncestralSettings.from_config(config))

    def _plan(self, steps: int) -> None:
        config, training = self.settings, self._training_sigmas
        self.timesteps = spaced_timesteps(
            config.timestep_spacing, steps, config.num_train_timesteps, config.steps_offset, rounded=False
        ).astype(np.float32)
        sigmas = np.interp(self.timesteps, np.arange(len(training)), training)
        self.sigmas = np.append(sigmas, 0).astype(np.float32)
        self._set_init_noise_sigma()

    def _advance(self, model_output: np.ndarray, i: int, x: np.ndarray, noise: Noise | None) -> np.ndarray:
        if noise is None:
            raise ValueError("euler-ancestral draws noise at each step: pass noise")
        here, there = self.sigmas[i], self.sigmas[i + 1]
        # Both roots can be of less than 0: by rounding where here is far above there, and by a rescaled schedule, whose
        # second level is above its first when there are many steps. Diffusers ends in NaN then.
        up = np.sqrt(np.maximum(there**2 * (here**2 - there**2) / here**2, 0))
        down = np.sqrt(np.maximum(there**2 - up**2, 0))
        return x + (down - here) * self._eps(model_output, i, x) + up * noise(x.shape)
