"""Token matching, merging and unmerging against NumPy float64 on random shapes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_runner import SHAPES_OF_REGISTERS, UNITS, assert_near, machine, needs_unit, run_kernel, word_machine

from compiler.kernels.tile_matching import tile_matching
from compiler.kernels.token_matching import MatchShape, token_matching
from compiler.kernels.token_merging import merge_tokens, unmerge_tokens
from models.token_merging import split_tokens

MARGIN = 2e-6  # of the cosines of two that may be exchanged
WORD_MARGIN = {1: 2**-6, 2: 2**-13}  # the same by bfloat16 parts

MATCHES = st.builds(
    MatchShape,
    batch=st.integers(1, 3),
    height=st.integers(2, 11),
    width=st.integers(2, 11),
    channels=st.sampled_from([3, 16, 20, 40]),
    stride=st.sampled_from([(2, 2), (1, 2), (3, 2), (2, 1)]),
    merged=st.integers(1, 100),
).filter(lambda shape: shape.destinations and shape.sources and shape.merged <= shape.sources)


def tokens_of(shape, seed=0):
    return np.random.default_rng(seed).standard_normal((shape.batch, shape.tokens, shape.channels)).astype(np.float32)


def check_match(slots, x, shape, margin):
    """Compare slots with what cosines in float64 allow: equals may be exchanged, within ``margin``."""
    destinations, sources = (index.numpy() for index in split_tokens(shape.height, shape.width, shape.stride))
    unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=-1, keepdims=True)
    for row, cosines in zip(slots, unit[:, sources] @ unit[:, destinations].transpose(0, 2, 1), strict=True):
        assert row[destinations].tolist() == list(range(len(destinations)))
        best, taken = cosines.max(axis=1), row[sources]
        leaves = taken < len(destinations)
        assert leaves.sum() == shape.merged
        assert sorted(taken[~leaves]) == list(range(len(destinations), shape.tokens - shape.merged))
        assert (cosines[leaves, taken[leaves]] >= best[leaves] - margin).all()
        if not leaves.all():
            assert best[leaves].min() >= best[~leaves].max() - margin


@settings(deadline=None, max_examples=25)
@given(MATCHES, st.sampled_from(SHAPES_OF_REGISTERS), st.integers(0, 99))
def test_matching_on_random_shapes(shape, registers, seed):
    x = tokens_of(shape, seed)
    function = token_matching(shape, machine(*registers))
    check_match(run_kernel(function, [x], [shape.batch, shape.tokens], "int32"), x, shape, MARGIN)


@needs_unit
@settings(deadline=None, max_examples=25)
@given(MATCHES, st.sampled_from(UNITS or [None]), st.integers(0, 99))
def test_matching_in_tiles_on_random_shapes(shape, unit, seed):
    x = tokens_of(shape, seed)
    function = tile_matching(shape, word_machine(unit))
    check_match(run_kernel(function, [x], [shape.batch, shape.tokens], "int32"), x, shape, WORD_MARGIN[unit[1]])


@pytest.mark.parametrize("value", [0.0, np.nan, 1.0, 1e-30])
def test_equal_zero_and_nan_tokens_stay_in_bounds(value):
    shape = MatchShape(1, 6, 6, 8, (2, 2), 13)
    x = np.full((1, 36, 8), value, np.float32)
    (slots,) = run_kernel(token_matching(shape, machine(16, 32)), [x], [1, 36], "int32")
    assert slots.min() >= 0 and slots.max() < 36 - 13


def random_slots(rng, batch, tokens, left):
    """Return slots of which each is taken."""
    drawn = [np.r_[np.arange(left), rng.integers(0, left, tokens - left)] for _ in range(batch)]
    return np.stack([rng.permutation(row) for row in drawn]).astype(np.int32)


@settings(deadline=None, max_examples=20)
@given(
    batch=st.integers(1, 3),
    tokens=st.integers(2, 50),
    channels=st.sampled_from([3, 16, 24, 80]),
    data=st.data(),
    registers=st.sampled_from(SHAPES_OF_REGISTERS),
)
def test_merging_and_unmerging_on_random_shapes(batch, tokens, channels, data, registers):
    merged = data.draw(st.integers(1, tokens - 1))
    rng, left = np.random.default_rng(tokens), tokens - merged
    slots, x = random_slots(rng, batch, tokens, left), rng.standard_normal((batch, tokens, channels)).astype(np.float32)
    groups = [[x[n][slots[n] == slot] for slot in range(left)] for n in range(batch)]
    means = np.stack([[group.mean(axis=0, dtype=np.float64) for group in row] for row in groups])
    result = run_kernel(merge_tokens(batch, tokens, channels, merged, machine(*registers)), [x, slots], means.shape)
    assert_near(result, means, np.abs(x).max() * 10, 1e-7)
    bias, rest = rng.standard_normal((1, channels)), rng.standard_normal((batch * tokens, channels))
    added = [bias.astype(np.float32), rest.astype(np.float32)]
    function = unmerge_tokens(batch, tokens, channels, merged, (1, batch * tokens), machine(*registers))
    given_back = run_kernel(function, [result, slots, *added], [batch * tokens, channels])
    expected = np.stack([result[n][slots[n]] for n in range(batch)]).reshape(-1, channels) + added[0] + added[1]
    assert_near(given_back, expected.astype(np.float64), 10, 1e-6)
