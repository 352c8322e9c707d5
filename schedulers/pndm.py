"""PNDM (arXiv:2202.09778): linear multistep over the model's last four outputs. Equals diffusers' PNDMScheduler.

With ``skip_prk_steps``, as Stable Diffusion has it, this is the sampler known as PLMS: the second timestep is visited
twice. Without it the first three steps are Runge-Kutta steps of four model calls each.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from schedulers.discrete import DiscreteScheduler
from schedulers.noise import Noise
from schedulers.noise_schedule import alphas_cumprod, predict
from schedulers.settings import Settings
from utils.errors import UserError

_RUNGE_KUTTA = (1 / 6, 1 / 3, 1 / 3, 1 / 6)
# Adams-Bashforth weights, the newest output first, for as many outputs as there are.
_MULTISTEP = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


@dataclass(frozen=True, kw_only=True)
class PNDMSettings(Settings):
    """Keys and defaults of diffusers' PNDMScheduler."""

    skip_prk_steps: bool = False
    set_alpha_to_one: bool = False

    CHOICES: ClassVar = {**Settings.CHOICES, "prediction_type": ("epsilon", "v_prediction")}


class PNDMScheduler(DiscreteScheduler):
    """Remembers the model's outputs, so steps must be taken in order."""

    label = "pndm"
    class_name = "PNDMScheduler"
    a1111_name = "PLMS"
    settings: PNDMSettings

    def __init__(self, config: Mapping[str, Any]) -> None:
        settings = PNDMSettings.from_config(config)
        super().__init__(settings, alphas_cumprod(settings), settings.set_alpha_to_one)

    def _plan(self, steps: int) -> None:
        visited = self._visit(steps)
        self._outputs: list[np.ndarray] = []  # the newest first
        self._start_x = np.empty(0, np.float32)
        self._warm_up = 0 if self.settings.skip_prk_steps else 12
        if self._warm_up:
            self._plan_runge_kutta(visited)
        else:
            self.timesteps = np.concatenate([visited[:2], visited[1:]])
            self._origins, self._targets = self.timesteps.copy(), self.timesteps - self._stride
            if steps > 1:  # the second call improves the first step: it goes from where the first one went from
                self._origins[1] += self._stride
                self._targets[1] += self._stride
        self.sigmas = self._noise_levels(int(self._targets[-1]))

    def _plan_runge_kutta(self, visited: np.ndarray) -> None:
        if len(visited) < 4:
            raise UserError(
                f"--steps {len(visited)} is too few: this model's pndm sampler starts with Runge-Kutta steps "
                "(skip_prk_steps is false) and needs 4 steps or more"
            )
        half = self._stride // 2
        timesteps, origins, targets = [], [], []
        for start, end in pairwise(visited[:4]):
            timesteps += [start, end + half, end + half, end]
            origins += [start] * 4
            targets += [start - half, end + half, end, end]
        self.timesteps = np.array([*timesteps, *visited[3:]])
        self._origins = np.array([*origins, *visited[3:]])
        self._targets = np.array([*targets, *(visited[3:] - self._stride)])

    def _advance(self, model_output: np.ndarray, i: int, x: np.ndarray, noise: Noise | None) -> np.ndarray:
        mixed = self._runge_kutta(model_output, i, x) if i < self._warm_up else self._multistep(model_output, i, x)
        if i < self._warm_up or (i == 1 and not self._warm_up):
            x = self._start_x
        return self._transfer(mixed, x, int(self._origins[i]), int(self._targets[i]))

    def _runge_kutta(self, model_output: np.ndarray, i: int, x: np.ndarray) -> np.ndarray:
        stage = i % 4
        if stage == 0:
            self._start_x, self._sum = x, np.float32(0) * x
            self._outputs.insert(0, model_output)
        self._sum = self._sum + np.float32(_RUNGE_KUTTA[stage]) * model_output
        return self._sum if stage == 3 else model_output

    def _multistep(self, model_output: np.ndarray, i: int, x: np.ndarray) -> np.ndarray:
        if i == 1:
            return (model_output + self._outputs[0]) / np.float32(2)
        if i == 0:
            self._start_x = x
        self._outputs = [model_output, *self._outputs[:3]]
        weights = np.array(_MULTISTEP[len(self._outputs) - 1], np.float32)
        return reduce(operator.add, (w * output for w, output in zip(weights, self._outputs, strict=True)))

    def _transfer(self, model_output: np.ndarray, x: np.ndarray, origin: int, target: int) -> np.ndarray:
        """Move x from one timestep to another along one estimate of the noise (the paper's transfer part)."""
        here, there = self._alpha_bar_at(origin), self._alpha_bar_at(target)
        noise_here, noise_there = np.float32(1) - here, np.float32(1) - there
        _, eps = predict(self.settings.prediction_type, model_output, x, np.sqrt(here), np.sqrt(noise_here))
        # In the order of diffusers: where alpha is tiny the two terms cancel, and what is left is their rounding.
        divisor = here * np.sqrt(noise_there) + np.sqrt(here * noise_here * there)
        return np.sqrt(there / here) * x - (there - here) * eps / divisor
