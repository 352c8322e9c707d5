"""What the samplers share that count noise as sigma = sigma_t / alpha_t (arXiv:2206.00364)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from schedulers.base import Scheduler
from schedulers.noise_schedule import alphas_cumprod, exponential, karras, predict, sigmas_of, timesteps_of
from schedulers.settings import CONFIG_FILE, Settings
from utils.errors import UserError


@dataclass(frozen=True, kw_only=True)
class RescaledSettings(Settings):
    """Settings of a sampler that can rescale the schedule to end in pure noise."""

    timestep_spacing: str = "linspace"
    rescale_betas_zero_snr: bool = False

    def training_alpha_bar(self) -> np.ndarray:
        """Return alpha_bar of each training timestep, float32, nowhere 0."""
        return alphas_cumprod(self, rescale=self.rescale_betas_zero_snr, positive=True)


@dataclass(frozen=True, kw_only=True)
class SigmaSettings(RescaledSettings):
    """Settings of a sampler that can choose its noise levels freely."""

    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    sigma_min: float | None = None
    sigma_max: float | None = None
    final_sigmas_type: str = "zero"

    CHOICES: ClassVar = {**Settings.CHOICES, "final_sigmas_type": ("zero", "sigma_min")}
    REFUSED: ClassVar[tuple[str, ...]] = ("use_beta_sigmas",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.use_karras_sigmas and self.use_exponential_sigmas:
            raise UserError(f"{CONFIG_FILE}: use_karras_sigmas and use_exponential_sigmas exclude each other")
        for key in ("sigma_min", "sigma_max"):
            value = getattr(self, key)
            if value is not None and not 0 < value < float("inf"):
                raise UserError(f"{CONFIG_FILE}: {key} must be above 0 and finite, not {value}")

    def chosen_sigmas(self, highest: float, lowest: float, steps: int) -> np.ndarray | None:
        """Return the falling noise levels that the config asks for, float64, or None for those of the timesteps.

        Args:
            highest: the first, where the config has no sigma_max.
            lowest: the last, where the config has no sigma_min.
            steps: how many.
        """
        highest = float(highest) if self.sigma_max is None else self.sigma_max
        lowest = float(lowest) if self.sigma_min is None else self.sigma_min
        if self.use_karras_sigmas:
            return karras(highest, lowest, steps)
        return exponential(highest, lowest, steps) if self.use_exponential_sigmas else None

    def with_final(self, sigmas: np.ndarray, training_sigmas: np.ndarray) -> np.ndarray:
        """Return the noise levels as float32, with the one where the run ends behind them."""
        return np.append(sigmas, training_sigmas[0] if self.final_sigmas_type == "sigma_min" else 0).astype(np.float32)


class SigmaScheduler(Scheduler):
    """A sampler whose x is x_0 + sigma eps; the model sees x scaled down to the variance that it was trained on."""

    settings: RescaledSettings

    def __init__(self, settings: RescaledSettings) -> None:
        self.settings = settings
        self._training_sigmas = sigmas_of(settings.training_alpha_bar())

    def _set_init_noise_sigma(self) -> None:
        highest = self.sigmas.max()
        leading = self.settings.timestep_spacing == "leading"
        self.init_noise_sigma = float(np.sqrt(highest**2 + np.float32(1)) if leading else highest)

    def scale_model_input(self, x: np.ndarray, i: int) -> np.ndarray:
        """Return x / sqrt(sigma^2 + 1)."""
        return x / np.sqrt(self.sigmas[i] ** 2 + np.float32(1))

    def _eps(self, model_output: np.ndarray, i: int, x: np.ndarray) -> np.ndarray:
        """Return the noise in x as the model's output implies it: the derivative dx / dsigma."""
        alpha = np.float32(1) / np.sqrt(self.sigmas[i] ** 2 + np.float32(1))
        return predict(self.settings.prediction_type, model_output, alpha * x, alpha, alpha * self.sigmas[i])[1]

    def _timesteps_at(self, sigmas: np.ndarray) -> np.ndarray:
        return timesteps_of(sigmas, self._training_sigmas)
