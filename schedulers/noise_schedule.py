"""How noisy the picture is at each training timestep, which timesteps a run visits, and what the model's output means.

Notation: x_t = alpha_t x_0 + sigma_t eps with alpha_t^2 + sigma_t^2 = 1 (DDPM, arXiv:2006.11239); the samplers written
for k-diffusion divide by alpha_t and use sigma = sigma_t / alpha_t alone (arXiv:2206.00364).

Coefficients are float32 step by step, because that is what diffusers has: its rounding is part of what we equal.
"""

from __future__ import annotations

import math

import numpy as np

from schedulers.settings import CONFIG_FILE, Settings
from utils.errors import UserError

_SMALLEST_ALPHA_BAR = np.float32(2.0**-24)  # stands for 0 where a sampler divides by alpha


def alphas_cumprod(settings: Settings, *, rescale: bool = False, positive: bool = False) -> np.ndarray:
    """Return alpha_bar_t = alpha_t^2 for each training timestep, float32 [num_train_timesteps].

    Args:
        settings: beta schedule, its ends and length.
        rescale: shift the schedule so that the last timestep is pure noise (arXiv:2305.08891, Algorithm 1).
        positive: with ``rescale``, replace the 0 at the end so that sigma is finite.

    Raises:
        UserError: a beta is not above 0 and at most 1.
    """
    betas = _betas(settings)
    if not np.all((betas > 0) & (betas <= 1)):
        key = "beta_start and beta_end" if settings.trained_betas is None else "trained_betas"
        raise UserError(f"{CONFIG_FILE}: {key} must give betas above 0 and at most 1")
    if rescale:
        betas = _zero_terminal_snr(betas)
    alpha_bar = _cumulative_product(np.float32(1) - betas)
    if rescale and positive:
        alpha_bar[-1] = _SMALLEST_ALPHA_BAR
    return alpha_bar


def _betas(settings: Settings) -> np.ndarray:
    start, end, count = settings.beta_start, settings.beta_end, settings.num_train_timesteps
    if settings.trained_betas is not None:
        return np.array(settings.trained_betas, np.float32)
    if settings.beta_schedule == "linear":
        return _linspace(start, end, count)
    if settings.beta_schedule == "scaled_linear":
        if min(start, end) < 0:
            raise UserError(f"{CONFIG_FILE}: beta_start and beta_end must not be negative")
        return _linspace(start**0.5, end**0.5, count) ** 2
    # squaredcos_cap_v2 (arXiv:2102.09672): alpha_bar follows a squared cosine, beta is capped
    time = np.arange(count + 1) / count
    alpha_bar = np.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999).astype(np.float32)


def _linspace(start: float, end: float, count: int) -> np.ndarray:
    """Return what torch.linspace has in float32, bit for bit: from either end to the middle, multiply-adds fused."""
    first, last = np.float32(start), np.float32(end)
    step = np.float64((last - first) / np.float32(max(count - 1, 1)))
    i = np.arange(count)
    return np.where(i < count // 2, first + step * i, last - step * (count - 1 - i)).astype(np.float32)


def rounded_log(x: np.ndarray) -> np.ndarray:
    """Return the logarithm as float32, rounded once. NumPy's own float32 logarithm is off from torch's more often."""
    return np.log(x.astype(np.float64)).astype(np.float32)


def _cumulative_product(factors: np.ndarray) -> np.ndarray:
    return np.cumprod(factors, dtype=np.float64).astype(np.float32)  # torch.cumprod accumulates in float64 too


def _zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    root = np.sqrt(_cumulative_product(np.float32(1) - betas))
    first, last = root[0], root[-1]
    root = (root - last) * (first / (first - last))
    alpha_bar = root**2
    return np.float32(1) - np.concatenate([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])


def sigmas_of(alpha_bar: np.ndarray) -> np.ndarray:
    """Return sigma_t / alpha_t, float32, for alpha_bar.

    Raises:
        UserError: alpha_bar is 0 somewhere: no finite amount of noise stands for pure noise.
    """
    if not np.all(alpha_bar > 0):
        raise UserError(f"{CONFIG_FILE}: the betas leave no signal at the last timestep; choose the sampler ddim")
    return np.sqrt((np.float32(1) - alpha_bar) / alpha_bar)


def spaced_timesteps(
    spacing: str, steps: int, last: int, offset: int = 0, stride: float | None = None, rounded: bool = True
) -> np.ndarray:
    """Return ``steps`` timesteps, the noisiest first, float64 (arXiv:2305.08891, Table 2).

    Args:
        spacing: linspace (from last - 1 to 0), leading (multiples of a whole stride) or trailing (from last - 1 down).
        steps: how many.
        last: one more than the highest timestep.
        offset: added where the spacing is leading.
        stride: distance between trailing timesteps, where it is not last / steps.
        rounded: whether linspace gives whole numbers.

    Raises:
        UserError: leading spacing has no room for so many steps.
    """
    if spacing == "linspace":
        timesteps = np.linspace(0, last - 1, steps)[::-1]
        return timesteps.round() if rounded else timesteps
    if spacing == "leading":
        if steps > last:
            raise UserError(f"timestep_spacing leading has no room for {steps} of {last} timesteps; use fewer --steps")
        return np.arange(steps, dtype=np.float64)[::-1] * (last // steps) + offset
    # Rounding can make arange one longer than asked (61 steps of 1000); diffusers then runs timestep -1.
    return np.arange(last, 0, -(last / steps if stride is None else stride)).round()[:steps] - 1


def karras(sigma_max: float, sigma_min: float, steps: int) -> np.ndarray:
    """Return falling noise levels, float64 (arXiv:2206.00364, equation 5, rho = 7)."""
    ramp = np.linspace(0, 1, steps)
    high, low = sigma_max ** (1 / 7), sigma_min ** (1 / 7)
    return (high + ramp * (low - high)) ** 7


def exponential(sigma_max: float, sigma_min: float, steps: int) -> np.ndarray:
    """Return noise levels that fall by the same factor each step, float64."""
    return np.exp(np.linspace(math.log(sigma_max), math.log(sigma_min), steps))


def timesteps_of(sigmas: np.ndarray, training_sigmas: np.ndarray) -> np.ndarray:
    """Return the fractional timesteps, float64, at which the training schedule has these noise levels.

    Linear between the logarithms of ``training_sigmas`` (rising, one a timestep), clipped to its ends.
    """
    log_sigma, table = np.log(np.maximum(sigmas, 1e-10)), np.log(training_sigmas)
    low = np.clip(np.searchsorted(table, log_sigma, side="right") - 1, 0, len(table) - 2)
    weight = np.clip((table[low] - log_sigma) / (table[low] - table[low + 1]), 0, 1)
    return (1 - weight) * low + weight * (low + 1)


def predict(
    prediction_type: str, model_output: np.ndarray, x: np.ndarray, alpha: np.float32, sigma: np.float32
) -> tuple[np.ndarray, np.ndarray]:
    """Return (x_0, eps) as the model's output implies them, for x = alpha x_0 + sigma eps.

    The one place that knows prediction types: epsilon (DDPM), sample (x_0) and v_prediction (arXiv:2202.00512).
    """
    if prediction_type == "epsilon":
        return (x - sigma * model_output) / alpha, model_output
    if prediction_type == "sample":
        return model_output, (x - alpha * model_output) / sigma
    return alpha * x - sigma * model_output, alpha * model_output + sigma * x
