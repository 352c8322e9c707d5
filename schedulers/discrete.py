"""What ddim and pndm share: they step between whole training timesteps."""

from __future__ import annotations

import numpy as np

from schedulers.base import Scheduler
from schedulers.noise_schedule import spaced_timesteps
from schedulers.settings import Settings
from utils.errors import UserError


class DiscreteScheduler(Scheduler):
    """A sampler over training timesteps, whose x is alpha_t x_0 + sigma_t eps with alpha_t^2 + sigma_t^2 = 1."""

    def __init__(self, settings: Settings, alpha_bar: np.ndarray, set_alpha_to_one: bool) -> None:
        self.settings = settings
        self._alpha_bar = alpha_bar
        self._final_alpha_bar = np.float32(1) if set_alpha_to_one else alpha_bar[0]
        self._stride = 0

    def _visit(self, steps: int) -> np.ndarray:
        """Return the timesteps of a run, int64, the noisiest first, and note the stride between them."""
        config = self.settings
        if steps > config.num_train_timesteps:
            raise UserError(
                f"--steps {steps} is more than the model's {config.num_train_timesteps} training timesteps; "
                f"use at most that many with the sampler {self.label}"
            )
        self._stride = config.num_train_timesteps // steps
        timesteps = spaced_timesteps(config.timestep_spacing, steps, config.num_train_timesteps, config.steps_offset)
        if timesteps[0] >= config.num_train_timesteps:
            raise UserError(
                f"--steps {steps} with the model's steps_offset {config.steps_offset} starts at timestep "
                f"{timesteps[0]:.0f}, past the last one ({config.num_train_timesteps - 1}); use fewer steps"
            )
        return timesteps.astype(np.int64)

    def _noise_levels(self, end: int) -> np.ndarray:
        """Return sigma_t / alpha_t at each timestep and at ``end``; infinite where there is no signal."""
        alpha_bar = np.array([self._alpha_bar_at(int(t)) for t in (*self.timesteps, end)])
        with np.errstate(divide="ignore"):
            return np.sqrt((np.float32(1) - alpha_bar) / alpha_bar)

    def _alpha_bar_at(self, timestep: int) -> np.float32:
        return self._alpha_bar[timestep] if timestep >= 0 else self._final_alpha_bar
