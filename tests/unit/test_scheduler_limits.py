"""Where diffusers crashes, returns NaN or does nonsense: ours gives a finite result or says what to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_schedulers import (
    SD,
    TOLERANCE,
    ZERO_SNR,
    linear_model,
    reference_scheduler,
    reference_trajectory,
    relative_error,
    timeless_model,
    trajectory,
)

from schedulers import LABELS, create
from utils.errors import UserError

KARRAS_COSINE = {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True}


def finite(xs: list[np.ndarray]) -> bool:
    return all(bool(np.isfinite(x).all()) for x in xs)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_runge_kutta_needs_four_steps(steps: int) -> None:
    config = {**SD, "skip_prk_steps": False}
    with pytest.raises(ValueError, match="broadcast"):
        reference_scheduler("pndm", config, steps)
    with pytest.raises(UserError, match=f"--steps {steps} is too few.*needs 4 steps"):
        create("pndm", config).set_timesteps(steps)


@pytest.mark.parametrize("label", LABELS)
def test_trailing_timesteps_are_as_many_as_steps(label: str) -> None:
    """At 61 steps (and 59 other counts) rounding gives diffusers a timestep -1 behind the last one."""
    config = {**SD, "timestep_spacing": "trailing"}
    theirs, ours = reference_scheduler(label, config, 61), create(label, config)
    ours.set_timesteps(61)
    assert theirs.timesteps[-1] == -1
    np.testing.assert_array_equal(ours.timesteps, theirs.timesteps.numpy()[:-1])
    assert finite(trajectory(label, config, 61))


def test_equal_first_timesteps_of_dpmpp_2m() -> None:
    """Diffusers looks the first timestep up, finds two that rounded to one, starts at the second and runs off the end.

    Told where to begin it is right, and equal to ours.
    """
    config = {**SD, **KARRAS_COSINE, "prediction_type": "v_prediction"}
    with pytest.raises(IndexError):
        reference_trajectory("dpmpp-2m", config, 20)
    expected = reference_trajectory("dpmpp-2m", config, 20, timeless_model, begin=True)
    assert relative_error(expected, trajectory("dpmpp-2m", config, 20, timeless_model)) <= TOLERANCE


@pytest.mark.parametrize(
    ("label", "extra", "steps"),
    [
        ("dpmpp-2m", {}, 1000),  # two timesteps round to one: a step of length 0
        ("dpmpp-2m", {"timestep_spacing": "leading"}, 999),  # timesteps 1000 and 999 have the same noise
        (
            "euler-ancestral",
            {**ZERO_SNR, "beta_schedule": "linear", "beta_end": 0.02},
            999,
        ),  # the second noise level is above the first
    ],
)
def test_finite_where_diffusers_is_not(label: str, extra: dict[str, Any], steps: int) -> None:
    with np.errstate(invalid="ignore"):
        assert not finite(reference_trajectory(label, {**SD, **extra}, steps))
    assert finite(trajectory(label, {**SD, **extra}, steps))


def test_pure_noise_with_epsilon() -> None:
    config = {**SD, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    assert not finite(reference_trajectory("ddim", config, 4))
    with pytest.raises(UserError, match=r"rescale_betas_zero_snr.*v_prediction"):
        create("ddim", config).set_timesteps(4)
    assert finite(trajectory("ddim", {**config, "prediction_type": "v_prediction"}, 4))


@pytest.mark.parametrize("label", ["ddim", "pndm"])
def test_an_offset_past_the_last_timestep(label: str) -> None:
    config = {**SD, "timestep_spacing": "leading"}
    with pytest.raises(IndexError):
        reference_trajectory(label, config, 1000)
    with pytest.raises(UserError, match=r"--steps 1000 .*steps_offset 1 starts at timestep 1000.*fewer"):
        create(label, config).set_timesteps(1000)
    assert finite(trajectory(label, {**config, "steps_offset": 0}, 1000))


@pytest.mark.parametrize(
    ("label", "steps", "words"),
    [
        ("ddim", 101, "--steps 101 is more than the model's 100 training timesteps"),
        ("pndm", 101, "--steps 101 is more than the model's 100 training timesteps"),
        ("euler", 101, "leading has no room for 101 of 100 timesteps; use fewer --steps"),
        ("euler-ancestral", 101, "leading has no room for 101"),
        ("dpmpp-2m", 100, "leading has no room for 101"),
        *[(label, 0, "--steps must be 1 or more, not 0") for label in LABELS],
    ],
)
def test_steps_that_cannot_be(label: str, steps: int, words: str) -> None:
    config = {**SD, "num_train_timesteps": 100, "beta_end": 0.1, "timestep_spacing": "leading"}
    with pytest.raises(UserError, match=words):
        create(label, config).set_timesteps(steps)


def test_no_timestep_left_by_lambda_min_clipped() -> None:
    with pytest.raises(UserError, match="lambda_min_clipped"):
        create("dpmpp-2m", {"lambda_min_clipped": 50.0}).set_timesteps(4)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("label", LABELS)
def test_all_step_counts_plan_or_refuse(label: str, spacing: str) -> None:
    """Each count from 1 to 1000 gives as many timesteps, none below 0, falling noise, or a refusal at 1000."""
    scheduler = create(label, {**SD, "timestep_spacing": spacing})
    repeated = 1 if label == "pndm" else 0
    for steps in range(1, 1001):
        try:
            scheduler.set_timesteps(steps)
        except UserError:
            assert spacing == "leading" and steps == 1000
            continue
        assert len(scheduler.timesteps) == steps + (repeated if steps > 1 else 0)
        assert scheduler.timesteps.min() >= 0 and np.isfinite(scheduler.sigmas).all()
        assert (np.diff(scheduler.sigmas) <= 0).all()


def test_the_stand_in_is_a_model() -> None:
    """The comparisons mean something: the stand-in depends on x and t, and x moves."""
    xs = trajectory("ddim", SD, 4)
    assert relative_error([xs[0]] * 5, xs) > 0.1
    assert np.abs(linear_model(xs[0], 0) - linear_model(xs[0], 999)).max() > 0.05
