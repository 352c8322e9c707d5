"""DPM-Solver++ multistep (arXiv:2211.01095). Equals diffusers' DPMSolverMultistepScheduler with dpmsolver++.

It solves in lambda = log(alpha_t / sigma_t) over the model's predictions of x_0, of order 1, 2 (the default) or 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from schedulers.base import Scheduler
from schedulers.noise import Noise
from schedulers.noise_schedule import predict, rounded_log, sigmas_of, spaced_timesteps, timesteps_of
from schedulers.settings import CONFIG_FILE
from schedulers.sigma import SigmaSettings
from schedulers.threshold import ThresholdSettings
from utils.errors import UserError

_ONE = np.float32(1)
_FEW_STEPS = 15  # below this many, lower_order_final takes effect


@dataclass(frozen=True, kw_only=True)
class DPMSolverSettings(SigmaSettings, ThresholdSettings):
    """Keys and defaults of diffusers' DPMSolverMultistepScheduler.

    sigma_min and sigma_max are no keys of that class, yet it reads them from the config of another one. Its flow_shift
    and time_shift_type do nothing without the keys that are refused here.
    """

    solver_order: int = 2
    algorithm_type: str = "dpmsolver++"
    solver_type: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    use_lu_lambdas: bool = False
    use_flow_sigmas: bool = False
    lambda_min_clipped: float = -math.inf
    variance_type: str | None = None
    use_dynamic_shifting: bool = False

    # deis, logrho, bh1 and bh2 are other samplers' words, which diffusers takes for the defaults here.
    CHOICES: ClassVar = {
        **SigmaSettings.CHOICES,
        "algorithm_type": ("dpmsolver++", "deis"),
        "solver_type": ("midpoint", "heun", "logrho", "bh1", "bh2"),
    }
    REFUSED: ClassVar[tuple[str, ...]] = (
        *SigmaSettings.REFUSED,
        "use_lu_lambdas",
        "use_flow_sigmas",
        "use_dynamic_shifting",
        "variance_type",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.solver_order not in (1, 2, 3):
            raise UserError(f"{CONFIG_FILE}: solver_order must be 1, 2 or 3, not {self.solver_order}")


class DPMSolverScheduler(Scheduler):
    """Remembers the model's outputs, so steps must be taken in order."""

    label = "dpmpp-2m"
    class_name = "DPMSolverMultistepScheduler"
    a1111_name = "DPM++ 2M"
    settings: DPMSolverSettings

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.settings = DPMSolverSettings.from_config(config)
        self._alpha_bar = self.settings.training_alpha_bar()
        self._training_sigmas = sigmas_of(self._alpha_bar)

    @property
    def is_linear(self) -> bool:
        """Whether x_0 is not thresholded."""
        return not self.settings.thresholding

    def _plan(self, steps: int) -> None:
        config, training = self.settings, self._training_sigmas
        sigmas = config.chosen_sigmas(training[-1], training[0], steps)
        if sigmas is None:
            timesteps = self._spaced(steps)
            sigmas = np.interp(timesteps, np.arange(len(training)), training)
        else:
            timesteps = timesteps_of(sigmas, training)
            if config.use_karras_sigmas and config.beta_schedule != "squaredcos_cap_v2":
                timesteps = timesteps.round()
        self.timesteps = timesteps.astype(np.int64)
        self.sigmas = config.with_final(sigmas, training)
        self._alphas = _ONE / np.sqrt(self.sigmas**2 + _ONE)
        with np.errstate(divide="ignore"):  # the run ends at sigma 0, lambda infinite
            self._lambdas = rounded_log(self._alphas) - rounded_log(self.sigmas * self._alphas)
        self._history: list[tuple[np.float32, np.ndarray]] = []  # (lambda, x_0), the newest first

    def _spaced(self, steps: int) -> np.ndarray:
        """Return whole timesteps: those of one step more, without the last, which is where the run ends."""
        config = self.settings
        lambdas = rounded_log(np.sqrt(self._alpha_bar)) - rounded_log(np.sqrt(_ONE - self._alpha_bar))
        last = config.num_train_timesteps - int(np.searchsorted(lambdas[::-1], np.float32(config.lambda_min_clipped)))
        if last < 1:
            raise UserError(f"{CONFIG_FILE}: lambda_min_clipped {config.lambda_min_clipped} leaves no timestep")
        if config.timestep_spacing == "trailing":
            return spaced_timesteps("trailing", steps, last, stride=config.num_train_timesteps / steps)
        return spaced_timesteps(config.timestep_spacing, steps + 1, last, config.steps_offset)[:-1]

    def _advance(self, model_output: np.ndarray, i: int, x: np.ndarray, noise: Noise | None) -> np.ndarray:
        config = self.settings
        if self.sigmas[i + 1] == self.sigmas[i]:
            return x  # timesteps that round to one: nothing to step over, nothing to divide by
        alpha, sigma = self._alphas[i], self.sigmas[i] * self._alphas[i]
        x_0, _ = predict(config.prediction_type, model_output, x, alpha, sigma)
        if config.thresholding:
            x_0 = config.threshold(x_0)
        self._history = [(self._lambdas[i], x_0), *self._history[: config.solver_order - 1]]
        order = min(len(self._history), self._highest_order(i))
        alpha_next, sigma_next = self._alphas[i + 1], self.sigmas[i + 1] * self._alphas[i + 1]
        h = self._lambdas[i + 1] - self._lambdas[i]
        x = sigma_next / sigma * x  # term by term as in diffusers: over 1000 steps the roundings add up
        for weight, derivative in zip(self._weights(order, h), self._derivatives(order, h), strict=True):
            x = x - alpha_next * weight * derivative
        return x

    def _highest_order(self, i: int) -> int:
        config, steps = self.settings, len(self.timesteps)
        few = config.lower_order_final and steps < _FEW_STEPS
        if i == steps - 1 and (config.euler_at_final or few or config.final_sigmas_type == "zero"):
            return 1
        return 2 if i == steps - 2 and few else 3

    def _weights(self, order: int, h: np.float32) -> list[np.float32]:
        """Return what x_0 and its derivatives in lambda count for over a step of h in lambda."""
        decay = np.float32(np.exp(-np.float64(h))) - _ONE
        if order == 2 and self.settings.solver_type != "heun":
            return [decay, np.float32(0.5) * decay]
        if order == 1:
            return [decay]
        return [decay, -(decay / h + _ONE), (decay + h) / h**2 - np.float32(0.5)][:order]

    def _derivatives(self, order: int, h: np.float32) -> list[np.ndarray]:
        """Return x_0 and its derivatives in lambda, in units of h, from the model's outputs so far."""
        lambda_0, m_0 = self._history[0]
        if order == 1:
            return [m_0]
        lambda_1, m_1 = self._history[1]
        r_0 = (lambda_0 - lambda_1) / h
        slope = _ONE / r_0 * (m_0 - m_1)
        if order == 2:
            return [m_0, slope]
        lambda_2, m_2 = self._history[2]
        r_1 = (lambda_1 - lambda_2) / h
        bend = slope - _ONE / r_1 * (m_1 - m_2)
        return [m_0, slope + r_0 / (r_0 + r_1) * bend, _ONE / (r_0 + r_1) * bend]
