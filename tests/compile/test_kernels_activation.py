"""Activations in the registers of a multiply, against NumPy in float64."""

import math

import numpy as np
import pytest
from kernel_runner import SHAPES_OF_REGISTERS, machine, panels, run_kernel

from compiler.kernels.epilogue import GEGLU
from compiler.kernels.matmul import matmul


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def quick_gelu(x):
    return x / (1 + np.exp(-1.702 * x))


REFERENCES = {"silu": silu, "gelu": gelu, "quick_gelu": quick_gelu}
VALUES = np.concatenate([np.linspace(-12, 12, 481), [-88, -20, -1e-3, -1e-30, 0, 1e-30, 1e-3, 20, 88]])


@pytest.mark.parametrize("columns", [32, 5])  # whole panels, and a tail that goes by scalars
@pytest.mark.parametrize(("lanes", "registers"), SHAPES_OF_REGISTERS)
@pytest.mark.parametrize("activation", REFERENCES)
def test_activations(activation, lanes, registers, columns):
    """The multiply passes its input through; half of it comes by the epilogue's addition, which goes first."""
    machine_ = machine(lanes, registers)
    x = VALUES.astype(np.float32)[:, None]
    weight = np.ones((1, columns), np.float32)
    half = np.broadcast_to(x / 2, (len(x), columns))
    kernel = matmul(len(x), 1, columns, (len(x),), machine_, activation)
    result = run_kernel(kernel, [x / 2, panels(weight, machine_.panel), half], (len(x), columns))
    reference = np.broadcast_to(REFERENCES[activation](x.astype(np.float64)), result.shape)
    np.testing.assert_allclose(result, reference, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize(("lanes", "registers"), SHAPES_OF_REGISTERS)
@pytest.mark.parametrize("rows", [3, 700])
def test_geglu(rows, lanes, registers):
    random = np.random.default_rng(rows)
    inputs, outputs = 7, 3 * lanes
    x = random.standard_normal((rows, inputs)).astype(np.float32)
    weight = random.standard_normal((inputs, 2 * outputs)).astype(np.float32)
    bias = random.standard_normal((1, 2 * outputs)).astype(np.float32)
    packed = weight.reshape(inputs, 2, 3, lanes).transpose(2, 0, 1, 3).reshape(3, inputs, 2 * lanes)
    kernel = matmul(rows, inputs, 2 * outputs, (1,), machine(lanes, registers), GEGLU)
    result = run_kernel(kernel, [x, packed, bias], (rows, outputs))
    value, gate = np.split(x.astype(np.float64) @ weight + bias, 2, axis=1)
    np.testing.assert_allclose(result, value * gelu(gate), rtol=1e-5, atol=2e-5)
