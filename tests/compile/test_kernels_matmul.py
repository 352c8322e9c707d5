"""The matrix multiply on packed weights, against NumPy in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_runner import SHAPES_OF_REGISTERS, assert_near, machine, panels, run_kernel

from compiler.kernels.matmul import FEW_ROWS, matmul


def multiply(m, k, n, operand_rows, machine_, size=1.0, seed=0, widths=()):
    """Run the kernel; return its result, the float64 reference and the sum of magnitudes of one element.

    With ``widths`` it reads columns of several arguments.
    """
    random = np.random.default_rng(seed)
    x = (random.standard_normal((m, k)) * size).astype(np.float32)
    w = random.standard_normal((k, n)).astype(np.float32)
    added = [(random.standard_normal((rows, n)) * size).astype(np.float32) for rows in operand_rows]
    kernel = matmul(m, k, n, operand_rows, machine_, widths=widths)
    parts = np.split(x, np.cumsum(widths)[:-1], axis=1) if widths else [x]
    result = run_kernel(kernel, [*parts, panels(w, machine_.panel), *added], (m, n))
    reference = x.astype(np.float64) @ w.astype(np.float64)
    magnitude = np.abs(x.astype(np.float64)) @ np.abs(w.astype(np.float64))
    for operand in added:
        whole = operand.astype(np.float64).repeat(m // len(operand), axis=0)
        reference, magnitude = reference + whole, magnitude + np.abs(whole)
    return result, reference, float(magnitude.max())


@st.composite
def cases(draw):
    m = draw(st.one_of(st.integers(1, 80), st.sampled_from([FEW_ROWS - 1, FEW_ROWS, FEW_ROWS + 13])))
    divisors = [d for d in range(1, m + 1) if m % d == 0]
    operands = tuple(draw(st.lists(st.sampled_from(divisors), max_size=3)))
    machine_ = machine(
        *draw(st.sampled_from(SHAPES_OF_REGISTERS)),
        cores=draw(st.integers(1, 5)),
        cache=draw(st.sampled_from([1 << 10, 1 << 14, 1 << 20])),
    )
    return m, draw(st.integers(1, 70)), draw(st.integers(1, 140)), operands, machine_


@settings(deadline=None, max_examples=14)
@given(case=cases(), size=st.sampled_from([1.0, 1e30, 1e-30, 1e-39]), seed=st.integers(0, 99))
def test_any_shape_and_magnitude(case, size, seed):
    result, reference, scale = multiply(*case, size, seed)
    assert_near(result, reference, scale, 1e-6)


@pytest.mark.parametrize(("lanes", "registers"), SHAPES_OF_REGISTERS)
def test_each_width_with_tails_everywhere(lanes, registers):
    """Rows, columns and the reduction all leave a rest; with few rows and with many."""
    for m in (37, FEW_ROWS + 5):
        result, reference, scale = multiply(m, 31, 45, (1, m), machine(lanes, registers))
        assert_near(result, reference, scale, 1e-6)


@pytest.mark.parametrize("widths", [(1, 5), (16, 15, 3)])
def test_columns_of_several_arguments(widths):
    result, reference, scale = multiply(37, sum(widths), 45, (1,), machine(16, 32), widths=widths)
    assert_near(result, reference, scale, 1e-6)


def test_infinities_and_nan_arrive():
    """A broken input must show in the result, and only in its own row."""
    machine_ = machine(16, 32)
    x, w = np.ones((3, 5), np.float32), np.ones((5, 40), np.float32)
    x[0, 2], x[2, 4] = np.inf, np.nan
    result = run_kernel(matmul(3, 5, 40, (), machine_), [x, panels(w, machine_.panel)], (3, 40))
    assert np.isposinf(result[0]).all() and (result[1] == 5).all() and np.isnan(result[2]).all()
