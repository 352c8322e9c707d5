"""Each sampler equals its diffusers class over whole trajectories, with a linear stand-in for the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from schedulers import LABELS, NoiseGenerator, create, per_picture

diffusers.logging.set_verbosity_error()

TOLERANCE = 1e-5  # of the trajectory's largest |x| so far
SHAPE = (2, 4, 3, 3)
SEED = 11
CLASSES = {
    "ddim": diffusers.DDIMScheduler,
    "pndm": diffusers.PNDMScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "euler-ancestral": diffusers.EulerAncestralDiscreteScheduler,
    "dpmpp-2m": diffusers.DPMSolverMultistepScheduler,
}
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
SD = {**SD, "clip_sample": False, "skip_prk_steps": True}
Model = Callable[[np.ndarray, float], np.ndarray]

_RANDOM = np.random.default_rng(0)
START = _RANDOM.standard_normal(SHAPE).astype(np.float32)
_MIXING = 0.7 * np.eye(4) + 0.25 * np.linalg.qr(_RANDOM.standard_normal((4, 4)))[0]
_DRIFT = 0.2 * _RANDOM.standard_normal((4, 1, 1))


def linear_model(x: np.ndarray, t: float) -> np.ndarray:
    """A x + b t: close enough to a denoiser that x stays bounded."""
    return (np.einsum("ij,bjhw->bihw", _MIXING, x) + _DRIFT * float(t) / 1000).astype(np.float32)


def timeless_model(x: np.ndarray, t: float) -> np.ndarray:
    return linear_model(x, 0)


def reference_scheduler(label: str, config: Mapping[str, Any], steps: int, begin: bool = False) -> Any:
    scheduler = CLASSES[label].from_config(dict(config))
    scheduler.set_timesteps(steps)
    if begin:
        scheduler.set_begin_index(0)
    return scheduler


def reference_trajectory(
    label: str, config: Mapping[str, Any], steps: int, model: Model = linear_model, begin: bool = False
) -> list[np.ndarray]:
    scheduler = reference_scheduler(label, config, steps, begin)
    extra = {"generator": torch.Generator("cpu").manual_seed(SEED)} if label == "euler-ancestral" else {}
    x = torch.from_numpy(START) * scheduler.init_noise_sigma
    xs = [x.numpy()]
    for t in scheduler.timesteps:
        output = torch.from_numpy(model(scheduler.scale_model_input(x, t).numpy(), float(t)))
        x = scheduler.step(output, t, x, **extra).prev_sample
        xs.append(x.numpy())
    return xs


def trajectory(
    label: str, config: Mapping[str, Any], steps: int, model: Model = linear_model, noise: Any = None
) -> list[np.ndarray]:
    scheduler = create(label, config)
    scheduler.set_timesteps(steps)
    noise = NoiseGenerator(SEED) if noise is None else noise
    xs = [START * np.float32(scheduler.init_noise_sigma)]
    for i, t in enumerate(scheduler.timesteps):
        output = model(scheduler.scale_model_input(xs[-1], i), float(t))
        xs.append(scheduler.step(output, i, xs[-1], noise))
        assert xs[-1].dtype == np.float32
    return xs


def relative_error(expected: list[np.ndarray], actual: list[np.ndarray]) -> float:
    assert len(actual) == len(expected)
    largest = np.maximum.accumulate([np.abs(x).max() for x in expected])
    assert largest[-1] < 1e5, "the stand-in explodes"
    return float(max(np.abs(a - b).max() / m for a, b, m in zip(expected, actual, largest, strict=True)))


def assert_equal_to_diffusers(label: str, config: Mapping[str, Any], steps: int) -> None:
    theirs, ours = reference_scheduler(label, config, steps), create(label, config)
    ours.set_timesteps(steps)
    np.testing.assert_allclose(ours.timesteps, theirs.timesteps.numpy(), rtol=0, atol=1e-3)
    assert (ours.timesteps.dtype.kind == "f") == theirs.timesteps.is_floating_point()
    if hasattr(theirs, "sigmas"):
        np.testing.assert_allclose(ours.sigmas[: steps + 1], theirs.sigmas.numpy()[: steps + 1], rtol=1e-5)
    assert len(ours.sigmas) > len(ours.timesteps)
    assert ours.init_noise_sigma == pytest.approx(float(theirs.init_noise_sigma), rel=1e-6)
    error = relative_error(reference_trajectory(label, config, steps), trajectory(label, config, steps))
    assert error <= TOLERANCE


def accepts(label: str, prediction_type: str) -> bool:
    """Whether the diffusers class steps with this prediction type."""
    return prediction_type != "sample" or label not in ("pndm", "euler-ancestral")


@pytest.mark.parametrize("steps", [1, 2, 4, 20, 50, 999])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("label", LABELS)
def test_equals_diffusers(label: str, prediction_type: str, spacing: str, steps: int) -> None:
    if not accepts(label, prediction_type):
        with pytest.raises((ValueError, NotImplementedError)):
            reference_trajectory(label, {**SD, "prediction_type": prediction_type}, 2)
        return  # that ours refuses it is tested with the config
    config = {**SD, "prediction_type": prediction_type, "timestep_spacing": spacing}
    if label == "dpmpp-2m" and spacing == "leading" and steps == 999:
        config["steps_offset"] = 0  # with 1, diffusers divides by zero: see test_scheduler_limits.py
    assert_equal_to_diffusers(label, config, steps)


V = {"prediction_type": "v_prediction"}
ZERO_SNR = {**V, "rescale_betas_zero_snr": True}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
ALL_LABELS = {
    "offset0": {"steps_offset": 0, "timestep_spacing": "leading"},
    "offset3": {"steps_offset": 3, "timestep_spacing": "leading"},
    "linear": {"beta_schedule": "linear"},
    "cosine": {**COSINE, "timestep_spacing": "leading"},
    "betas": {"beta_start": 0.0005, "beta_end": 0.015},
    "trained_betas": {"trained_betas": np.geomspace(1e-4, 0.02, 1000).tolist()},
    "train100": {"num_train_timesteps": 100, "beta_end": 0.1},
}
# By label: name of the case -> what differs from SD. Each must change the picture.
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "ddim": {
        "clip": {"clip_sample": True},
        "clip_range": {"clip_sample": True, "clip_sample_range": 2.5},
        "alpha_to_one": {"set_alpha_to_one": False},
        "threshold": {"thresholding": True},
        "threshold_ratio": {"thresholding": True, "dynamic_thresholding_ratio": 0.8, "sample_max_value": 3.0},
        "zero_snr_trailing": {**ZERO_SNR, "timestep_spacing": "trailing"},
    },
    "pndm": {
        "prk": {"skip_prk_steps": False},
        "prk_v": {"skip_prk_steps": False, **V, "timestep_spacing": "trailing"},
        "prk_linspace": {"skip_prk_steps": False, "timestep_spacing": "linspace"},
        "alpha_to_one": {"set_alpha_to_one": True},
    },
    "euler": {
        "karras": {"use_karras_sigmas": True},
        "karras_ends": {"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 10.0},
        "exponential": {"use_exponential_sigmas": True},
        "log_linear": {"interpolation_type": "log_linear"},
        "continuous": {**V, "timestep_type": "continuous"},
        "sigma_min": {"final_sigmas_type": "sigma_min"},
        "zero_snr": {**ZERO_SNR},
        "zero_snr_trailing": {**ZERO_SNR, "timestep_spacing": "trailing"},
    },
    "euler-ancestral": {
        "zero_snr": {**ZERO_SNR},
        "zero_snr_trailing": {**ZERO_SNR, "timestep_spacing": "trailing"},
    },
    "dpmpp-2m": {
        "karras": {"use_karras_sigmas": True},
        "karras_ends": {"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 10.0},
        "karras_v": {"use_karras_sigmas": True, **V},
        "sigma_min": {"final_sigmas_type": "sigma_min"},
        "order1": {"solver_order": 1},
        "order3": {"solver_order": 3},
        "heun": {"solver_type": "heun"},
        "order3_not_lower_final": {"solver_order": 3, "lower_order_final": False},
        "sigma_min_not_lower_final": {"final_sigmas_type": "sigma_min", "lower_order_final": False},
        "euler_at_final": {"final_sigmas_type": "sigma_min", "lower_order_final": False, "euler_at_final": True},
        "threshold": {"thresholding": True},
        "threshold_ratio": {"thresholding": True, "dynamic_thresholding_ratio": 0.8, "sample_max_value": 3.0},
        "lambda_min_clipped": {**COSINE, "lambda_min_clipped": -5.1},
        "lambda_min_clipped_trailing": {**COSINE, "lambda_min_clipped": -5.1, "timestep_spacing": "trailing"},
        "zero_snr": {**ZERO_SNR, "timestep_spacing": "trailing"},
    },
}
CASES = [(label, name) for label in LABELS for name in (*ALL_LABELS, *OPTIONS[label])]
# What an option is compared with to see that it changes something, where that is not SD.
BASES = {
    "order3_not_lower_final": {"solver_order": 3},
    "zero_snr": V, "zero_snr_trailing": {**V, "timestep_spacing": "trailing"}, "continuous": V, "karras_v": V,
    "prk_v": {**V, "timestep_spacing": "trailing"}, "prk_linspace": {"timestep_spacing": "linspace"},
    "offset0": {"timestep_spacing": "leading"}, "offset3": {"timestep_spacing": "leading"},
    "clip_range": {"clip_sample": True}, "threshold_ratio": {"thresholding": True},
    "karras_ends": {"use_karras_sigmas": True}, "sigma_min_not_lower_final": {"final_sigmas_type": "sigma_min"},
    "euler_at_final": {"final_sigmas_type": "sigma_min", "lower_order_final": False},
    "lambda_min_clipped": COSINE, "lambda_min_clipped_trailing": {**COSINE, "timestep_spacing": "trailing"},
}  # fmt: skip


def case_config(label: str, name: str) -> dict[str, Any]:
    return {**SD, **(ALL_LABELS.get(name) or OPTIONS[label][name])}


@pytest.mark.parametrize("steps", [4, 20])
@pytest.mark.parametrize(("label", "name"), CASES)
def test_options_equal_diffusers(label: str, name: str, steps: int) -> None:
    assert_equal_to_diffusers(label, case_config(label, name), steps)


@pytest.mark.parametrize(("label", "name"), CASES)
def test_options_change_the_trajectory(label: str, name: str) -> None:
    base = trajectory(label, {**SD, **BASES.get(name, {})}, 6)
    changed = trajectory(label, case_config(label, name), 6)
    assert len(base) != len(changed) or relative_error(base, changed) > 1e-4


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("ddim", "clip"),
        ("ddim", "alpha_to_one"),
        ("pndm", "prk"),
        ("euler", "karras"),
        ("euler", "zero_snr_trailing"),
        ("dpmpp-2m", "order3"),
        ("dpmpp-2m", "heun"),
        ("dpmpp-2m", "sigma_min"),
    ],
)
def test_options_equal_diffusers_over_many_steps(label: str, name: str) -> None:
    assert_equal_to_diffusers(label, case_config(label, name), 500)


@pytest.mark.parametrize("steps", [4, 20, 999])
def test_exponential_sigmas_of_dpmpp_2m(steps: int) -> None:
    """Diffusers cuts the timesteps to whole numbers where 998.9999999 and 999 are both right: allow one."""
    config = {**SD, "use_exponential_sigmas": True}
    theirs, ours = reference_scheduler("dpmpp-2m", config, steps), create("dpmpp-2m", config)
    ours.set_timesteps(steps)
    np.testing.assert_allclose(ours.timesteps, theirs.timesteps.numpy(), rtol=0, atol=1)
    expected = reference_trajectory("dpmpp-2m", config, steps, timeless_model, begin=True)
    assert relative_error(expected, trajectory("dpmpp-2m", config, steps, timeless_model)) <= TOLERANCE


def test_a_scheduler_can_run_again() -> None:
    for label in LABELS:
        scheduler = create(label, SD)
        finals = []
        for _ in range(2):
            scheduler.set_timesteps(5)
            x, noise = START * np.float32(scheduler.init_noise_sigma), NoiseGenerator(SEED)
            for i, t in enumerate(scheduler.timesteps):
                x = scheduler.step(linear_model(scheduler.scale_model_input(x, i), float(t)), i, x, noise)
            finals.append(x)
        np.testing.assert_array_equal(finals[0], finals[1])


def test_half_precision_comes_back_as_float32() -> None:
    for label in LABELS:
        scheduler = create(label, SD)
        scheduler.set_timesteps(3)
        half = START.astype(np.float16)
        assert scheduler.step(half, 0, half, NoiseGenerator(SEED)).dtype == np.float32


def test_ancestral_noise_of_a_batch_equals_a_list_of_generators() -> None:
    seeds = (3, 2**40 + 1)
    scheduler = reference_scheduler("euler-ancestral", SD, 6)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    x = torch.from_numpy(START) * scheduler.init_noise_sigma
    expected = [x.numpy()]
    for t in scheduler.timesteps:
        output = torch.from_numpy(linear_model(scheduler.scale_model_input(x, t).numpy(), float(t)))
        x = scheduler.step(output, t, x, generator=generators).prev_sample
        expected.append(x.numpy())
    noise = per_picture([NoiseGenerator(seed) for seed in seeds])
    assert relative_error(expected, trajectory("euler-ancestral", SD, 6, noise=noise)) <= TOLERANCE


def test_ancestral_without_noise_is_a_mistake_of_the_caller() -> None:
    scheduler = create("euler-ancestral", SD)
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match="pass noise"):
        scheduler.step(START, 0, START)
