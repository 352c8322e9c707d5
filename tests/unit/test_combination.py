"""Samplers run on sums of arrays that are not there: the same steps as on arrays, from few of them at once."""

import numpy as np
import pytest

import schedulers
from schedulers.combination import Combination
from schedulers.moves import moves

CONFIG = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
DDIM = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
SHAPE, GUIDANCE = (2, 3, 4, 5), 7.5
CASES = [
    ("ddim", DDIM),
    ("ddim", {**DDIM, "prediction_type": "v_prediction"}),
    ("pndm", {"skip_prk_steps": True}),
    ("pndm", {"skip_prk_steps": False}),
    ("euler", {}),
    ("euler", {"use_karras_sigmas": True, "prediction_type": "v_prediction"}),
    ("euler-ancestral", {}),
    ("dpmpp-2m", {}),
    ("dpmpp-2m", {"solver_order": 3, "solver_type": "heun", "use_karras_sigmas": True}),
]


def sampler(label, config, steps):
    made = schedulers.create(label, CONFIG | config)
    made.set_timesteps(steps)
    return made


def value(wanted, arrays):
    return sum(factor * arrays[key].astype("float64") for key, factor in wanted.terms.items())


@pytest.mark.parametrize("guidance", [None, GUIDANCE])
@pytest.mark.parametrize("steps", [4, 17])
@pytest.mark.parametrize(("label", "config"), CASES)
def test_the_same_steps_as_on_arrays(label, config, steps, guidance):
    on_arrays, planned = sampler(label, config, steps), sampler(label, config, steps)
    random = np.random.default_rng(0)
    plan = moves(planned, guidance, SHAPE)
    assert len(plan) == len(on_arrays.timesteps)
    x = random.standard_normal(SHAPE).astype(np.float32) * np.float32(on_arrays.init_noise_sigma)
    arrays = {("x", 0, 0): x}
    for i, move in enumerate(plan):
        seen = on_arrays.scale_model_input(x, i)
        np.testing.assert_allclose(value(move.seen, arrays), seen, rtol=1e-5, atol=1e-5)
        outputs = random.standard_normal((2, *SHAPE)).astype(np.float32) * np.float32(0.3)
        noise = random.standard_normal(SHAPE).astype(np.float32)
        arrays |= {("output", i, 0): outputs[0], ("output", i, 1): outputs[1], ("noise", i, 0): noise}
        eps = outputs[0] if guidance is None else outputs[0] + np.float32(guidance) * (outputs[1] - outputs[0])
        x = on_arrays.step(eps, i, x, lambda shape, drawn=noise: drawn)
        arrays["x", i + 1, 0] = x
        np.testing.assert_allclose(value(move.after, arrays), x, rtol=1e-4, atol=1e-4 * np.abs(x).max())


@pytest.mark.parametrize("steps", [1, 4, 30])
@pytest.mark.parametrize(("label", "config"), CASES)
def test_a_step_reads_no_more_than_the_sampler_that_is_compiled(label, config, steps):
    if steps < 4 and config.get("skip_prk_steps") is False:
        return
    for move in moves(sampler(label, config, steps), GUIDANCE, SHAPE):
        keys = {(kind, step) for wanted in (move.seen, move.after) for kind, step, _ in wanted.terms}
        outputs = sum(kind == "output" for kind, _ in keys)
        assert outputs <= 4 and len(keys) - outputs <= 3


def test_what_is_not_linear_says_so():
    assert not schedulers.create("ddim", CONFIG | {"clip_sample": True}).is_linear
    assert not schedulers.create("dpmpp-2m", CONFIG | {"thresholding": True}).is_linear
    assert all(sampler(label, config, 4).is_linear for label, config in CASES)


def test_numbers_of_numpy_leave_products_to_it():
    x = Combination({("x", 0, 0): 2.0}, SHAPE)
    for product in (np.float32(3) * x, x * np.float32(3), x / np.float32(1 / 3), x + x + x):
        assert isinstance(product, Combination) and product.terms["x", 0, 0] == pytest.approx(6)
    assert (x - x).terms == {("x", 0, 0): 0.0} and x.shape == SHAPE
