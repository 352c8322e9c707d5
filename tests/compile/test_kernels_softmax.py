"""Softmax over the last axis, against NumPy in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_runner import SHAPES_OF_REGISTERS, machine, run_kernel

from compiler.kernels.softmax import softmax


def reference(x):
    powers = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@settings(deadline=None, max_examples=12)
@given(
    rows=st.integers(1, 40),
    columns=st.one_of(st.integers(1, 40), st.sampled_from([77, 128, 211, 256])),
    registers=st.sampled_from(SHAPES_OF_REGISTERS),
    size=st.sampled_from([1e-30, 1.0, 30.0, 1e30]),
    seed=st.integers(0, 99),
)
def test_any_shape_and_magnitude(rows, columns, registers, size, seed):
    x = (np.random.default_rng(seed).standard_normal((rows, columns)) * size).astype(np.float32)
    result = run_kernel(softmax(rows, columns, machine(*registers)), [x], (rows, columns))
    np.testing.assert_allclose(result, reference(x), rtol=3e-6 * max(1.0, min(size, 100.0)), atol=1e-37)
    np.testing.assert_allclose(result.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("masked", [-1e30, -3e38])
def test_masked_columns_are_zero_and_masked_rows_even(masked):
    x = np.random.default_rng(0).standard_normal((3, 48)).astype(np.float32)
    x[0, 7:] = masked
    x[1] = masked
    result = run_kernel(softmax(3, 48, machine(16, 32)), [x], (3, 48))
    assert (result[0, 7:] < 1e-37).all() and result[0, :7].sum() == pytest.approx(1)
    np.testing.assert_allclose(result[1], 1 / 48, rtol=1e-6)
