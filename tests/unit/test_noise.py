"""Noise equals torch.randn's, number by number."""

import time

import numpy as np
import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schedulers.noise import NoiseGenerator, per_picture
from utils.errors import UserError

TOLERANCE = 1e-5
SEEDS = st.integers(0, 2**64 - 1)
SIZES = st.one_of(st.integers(0, 40), st.sampled_from([100, 255, 256, 4096, 4097, 4 * 64 * 64]))


def torch_generator(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


@given(seed=SEEDS, sizes=st.lists(SIZES, min_size=1, max_size=8))
@example(seed=0, sizes=[1, 3, 15, 16, 17, 100, 4096, 4 * 64 * 64])
@example(seed=2**32, sizes=[16])  # only the low 32 bits count
@example(seed=2**64 - 1, sizes=[1, 4096, 1, 2])  # the second of a pair outlives a large call
@example(seed=7, sizes=[3, 17, 0, 3, 16, 1, 1])
@settings(deadline=None, max_examples=150)
def test_successive_calls_equal_torch(seed: int, sizes: list[int]) -> None:
    generator, reference = NoiseGenerator(seed), torch_generator(seed)
    for size in sizes:
        expected = torch.randn(size, generator=reference, dtype=torch.float32).numpy()
        drawn = generator.randn((size,))
        assert drawn.dtype == np.float32
        np.testing.assert_allclose(drawn, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("shape", [(1, 4, 64, 64), (2, 4, 9, 13), (1, 4, 1, 1), (), (3, 0, 2)])
def test_shapes_equal_torch(shape: tuple[int, ...]) -> None:
    drawn = NoiseGenerator(42).randn(shape)
    expected = torch.randn(shape, generator=torch_generator(42)).numpy()
    assert drawn.shape == shape
    np.testing.assert_allclose(drawn, expected, rtol=0, atol=TOLERANCE)


def test_seeds_differ_and_numbers_are_normal() -> None:
    a, b = NoiseGenerator(1).randn((100_000,)), NoiseGenerator(2).randn((100_000,))
    assert abs(a.mean()) < 0.02 and abs(a.std() - 1) < 0.02 and np.abs(a).max() > 3.5
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.02


def test_per_picture_equals_a_list_of_generators() -> None:
    seeds, shape = (5, 6, 2**63), (3, 4, 5, 7)
    reference = [torch_generator(seed) for seed in seeds]
    noise = per_picture([NoiseGenerator(seed) for seed in seeds])
    for _ in range(2):
        expected = randn_tensor(shape, generator=reference, dtype=torch.float32).numpy()
        np.testing.assert_allclose(noise(shape), expected, rtol=0, atol=TOLERANCE)


def test_per_picture_wants_a_generator_for_each() -> None:
    with pytest.raises(ValueError, match="2 generators for a batch of 3"):
        per_picture([NoiseGenerator(0), NoiseGenerator(1)])((3, 4, 8, 8))


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True, "7", float("nan")])
def test_bad_seeds_are_refused(seed: object) -> None:
    with pytest.raises(UserError, match=r"--seed .* from 0 to 18446744073709551615"):
        NoiseGenerator(seed)  # type: ignore[arg-type]


def test_a_megapixel_latent_takes_milliseconds() -> None:
    generator = NoiseGenerator(0)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        generator.randn((1, 4, 128, 128))
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.05  # 2 ms on an idle core
