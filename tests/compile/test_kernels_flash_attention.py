"""Flash attention against NumPy in float64."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_runner import SHAPES_OF_REGISTERS, assert_near, run_kernel

from compiler.kernels.flash_attention import KEY_BLOCK, AttentionShape, flash_attention


def reference_attention(query, key, value, scale, offset):
    """Return attention over [B, tokens, heads, size] in float64, NaN where nothing is seen, and the largest score."""
    q, k, v = (x.astype(np.float64).transpose(0, 2, 1, 3) for x in (query, key, value))
    scores = q @ k.swapaxes(-1, -2) * scale
    largest = float(np.abs(scores).max())
    if offset is not None:
        seen = np.arange(k.shape[2])[None, :] <= np.arange(q.shape[2])[:, None] + offset
        scores = np.where(seen, scores, -np.inf)
    with np.errstate(invalid="ignore"):
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = weights / weights.sum(axis=-1, keepdims=True) @ v
    return mixed.transpose(0, 2, 1, 3), largest


def attend(shape, registers, sharpness=1.0, size=1.0, seed=0):
    """Run the kernel. ``sharpness`` scales the queries, ``size`` the values."""
    random = np.random.default_rng(seed)

    def draw(tokens, width, factor):
        return (random.standard_normal((shape.batch, tokens, shape.heads, width)) * factor).astype(np.float32)

    query, key = draw(shape.queries, shape.size, sharpness), draw(shape.keys, shape.size, 1.0)
    value = draw(shape.keys, shape.value_size, size)
    output = (shape.batch, shape.queries, shape.heads, shape.value_size)
    result = run_kernel(flash_attention(shape, *registers), [query, key, value], output)
    reference, largest = reference_attention(query, key, value, shape.scale, shape.offset)
    return result, reference, (2 + largest) * float(np.abs(value).max())


def check(shape, registers, sharpness=1.0, size=1.0, seed=0):
    """An error of the scores is one of the weights, relative: so large scores widen the allowance."""
    result, reference, scale = attend(shape, registers, sharpness, size, seed)
    seen = ~np.isnan(reference)
    assert np.isfinite(result).all()
    if seen.any():
        assert_near(result[seen], reference[seen], scale, 5e-7)


@st.composite
def shapes(draw):
    size = draw(st.integers(1, 90))
    keys = draw(st.one_of(st.integers(1, 20), st.integers(60, 2 * KEY_BLOCK + 9)))
    queries = draw(st.integers(1, 90))
    return AttentionShape(
        batch=draw(st.integers(1, 2)),
        heads=draw(st.integers(1, 3)),
        queries=queries,
        keys=keys,
        size=size,
        value_size=draw(st.one_of(st.just(size), st.integers(1, 90))),
        scale=draw(st.sampled_from([1.0, 1 / math.sqrt(size), 0.3])),
        offset=draw(st.one_of(st.none(), st.sampled_from([0, keys - queries]), st.integers(-3, 20))),
    )


@settings(deadline=None, max_examples=15)
@given(
    shape=shapes(),
    registers=st.sampled_from(SHAPES_OF_REGISTERS),
    sharpness=st.sampled_from([1.0, 30.0, 1e-20, 1e-42]),
    size=st.sampled_from([1.0, 1e30, 1e-30, 1e-39]),
    seed=st.integers(0, 99),
)
def test_any_shape_and_magnitude(shape, registers, sharpness, size, seed):
    check(shape, registers, sharpness, size, seed)


@pytest.mark.parametrize("registers", SHAPES_OF_REGISTERS)
@pytest.mark.parametrize("keys", [1, 77, KEY_BLOCK, KEY_BLOCK + 1, 2 * KEY_BLOCK])
def test_each_width_and_number_of_keys(registers, keys):
    """Tails of queries, and whole and broken blocks of keys."""
    check(AttentionShape(2, 2, 67, keys, 20, 20, 20**-0.5, None), registers)


def test_a_maximum_that_keeps_growing_rescales_what_came_before():
    """Each block of keys has larger scores than the one before, and the last key wins."""
    keys, size = 3 * KEY_BLOCK + 5, 8
    query = np.ones((1, 40, 1, size), np.float32)
    key = np.linspace(-3, 3, keys, dtype=np.float32)[None, :, None, None].repeat(size, axis=3)
    value = np.arange(keys, dtype=np.float32)[None, :, None, None].repeat(4, axis=3)
    shape = AttentionShape(1, 1, 40, keys, size, 4, 1.0, None)
    result = run_kernel(flash_attention(shape, 16, 32), [query, key, value], (1, 40, 1, 4))
    reference, _ = reference_attention(query, key, value, 1.0, None)
    assert reference.min() > keys - 10
    np.testing.assert_allclose(result, reference, rtol=1e-5)


def test_rows_that_see_nothing_are_numbers():
    shape = AttentionShape(1, 2, 40, 50, 8, 8, 1.0, offset=-7)
    result, reference, scale = attend(shape, (16, 32))
    assert np.isnan(reference[:, :7]).all() and np.isfinite(result).all()
    assert_near(result[:, 7:], reference[:, 7:], scale, 5e-7)


def test_a_causal_row_ignores_what_comes_after():
    shape = AttentionShape(1, 1, 20, 20, 8, 8, 1.0, offset=0)
    random = np.random.default_rng(0)
    query, key, value = random.standard_normal((3, 1, 20, 1, 8)).astype(np.float32)
    kernel = flash_attention(shape, 16, 32)
    before = run_kernel(kernel, [query, key, value], (1, 20, 1, 8))
    key[:, 10:] += 5
    value[:, 10:] *= -9
    after = run_kernel(kernel, [query, key, value], (1, 20, 1, 8))
    assert np.array_equal(before[:, :10], after[:, :10])
    assert not np.isclose(before[:, 10:], after[:, 10:]).all(axis=-1).any()
