"""GroupNorm and LayerNorm, against NumPy in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_runner import SHAPES_OF_REGISTERS, machine, run_kernel
from test_kernels_activation import REFERENCES

from compiler.kernels.group_norm import GroupNormShape, group_norm
from compiler.kernels.layer_norm import layer_norm


def normalise(x, axes, epsilon):
    mean = x.mean(axis=axes, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=axes, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon)


def drawn(random, shape, offset):
    return (random.standard_normal(shape) + offset).astype(np.float32)


def assert_normal(result, reference, offset):
    """What float32 keeps of values around ``offset`` bounds the error; zeros are far off."""
    assert np.abs(reference).max() > 0.1
    np.testing.assert_allclose(result, reference, atol=4e-6 * (1 + abs(offset)), rtol=2e-5)


@st.composite
def group_cases(draw):
    groups = draw(st.integers(1, 6))
    channels = groups * draw(st.integers(1, 20))
    shape = GroupNormShape(draw(st.integers(1, 3)), draw(st.integers(2, 90)), channels, groups, 1e-5)
    registers = machine(*draw(st.sampled_from(SHAPES_OF_REGISTERS)), cores=draw(st.integers(1, 4)))
    return shape, draw(st.sampled_from([None, "silu"])), registers


@settings(deadline=None, max_examples=12)
@given(case=group_cases(), offset=st.sampled_from([0.0, 3.0, -100.0]), seed=st.integers(0, 99))
def test_group_norm(case, offset, seed):
    shape, activation, machine_ = case
    random = np.random.default_rng(seed)
    x = drawn(random, (shape.batch, shape.pixels, shape.channels), offset)
    gamma, beta = drawn(random, shape.channels, 1), drawn(random, shape.channels, 0)
    result = run_kernel(group_norm(shape, activation, machine_), [x, gamma, beta], x.shape)
    grouped = x.astype(np.float64).reshape(shape.batch, shape.pixels, shape.groups, -1)
    reference = normalise(grouped, (1, 3), shape.epsilon).reshape(x.shape) * gamma + beta
    reference = reference if activation is None else REFERENCES[activation](reference)
    assert_normal(result, reference, offset)


@pytest.mark.parametrize("widths", [(32, 16), (5, 7), (16, 16, 64)])
def test_group_norm_of_several_arguments(widths):
    """Groups reach over the border of two arguments."""
    random = np.random.default_rng(0)
    channels, groups = sum(widths), 4
    parts = [drawn(random, (2, 13, width), 3.0) for width in widths]
    gamma, beta = drawn(random, channels, 1), drawn(random, channels, 0)
    kernel = group_norm(GroupNormShape(2, 13, channels, groups, 1e-5), "silu", machine(16, 32), widths)
    x = np.concatenate(parts, axis=2)
    result = run_kernel(kernel, [*parts, gamma, beta], x.shape)
    grouped = x.astype(np.float64).reshape(2, 13, groups, -1)
    reference = normalise(grouped, (1, 3), 1e-5).reshape(x.shape) * gamma + beta
    assert_normal(result, REFERENCES["silu"](reference), 3.0)


@settings(deadline=None, max_examples=10)
@given(
    rows=st.integers(1, 40),
    channels=st.integers(2, 100),
    width=st.sampled_from(SHAPES_OF_REGISTERS),
    offset=st.sampled_from([0.0, -50.0]),
    seed=st.integers(0, 99),
)
def test_layer_norm(rows, channels, width, offset, seed):
    random = np.random.default_rng(seed)
    x, gamma, beta = drawn(random, (rows, channels), offset), drawn(random, channels, 1), drawn(random, channels, 0)
    result = run_kernel(layer_norm(rows, channels, 1e-5, machine(*width)), [x, gamma, beta], x.shape)
    assert_normal(result, normalise(x.astype(np.float64), 1, 1e-5) * gamma + beta, offset)


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_constant_input_gives_beta(value):
    """No variance: epsilon keeps the result finite."""
    x, one = np.full((1, 9, 32), value, np.float32), np.ones(32, np.float32)
    beta = np.arange(32, dtype=np.float32)
    grouped = run_kernel(group_norm(GroupNormShape(1, 9, 32, 4, 1e-5), None, machine(16, 32)), [x, one, beta], x.shape)
    np.testing.assert_allclose(grouped, np.broadcast_to(beta, x.shape), atol=1e-5)
    layered = run_kernel(layer_norm(9, 32, 1e-5, machine(16, 32)), [x[0], one, beta], x.shape[1:])
    np.testing.assert_allclose(layered, np.broadcast_to(beta, x.shape[1:]), atol=1e-5)
