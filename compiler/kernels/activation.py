"""Activations on vectors, by polynomials: LLVM vectorises neither exp nor erf."""

from __future__ import annotations

import math
from collections.abc import Sequence

import tvm.tirx.script.builder.ir as T

from compiler.kernels.tir import Value, Vectors

# erfc(x) = t (a1 + t (a2 + ...)) exp(-x^2), t = 1 / (1 + p x), to 1.5e-7: Abramowitz and Stegun, 7.1.26
ERFC_P = 0.3275911
QUICK = 1.702  # Hendrycks and Gimpel, Gaussian Error Linear Units (2016), section 2
FAR = 8.0  # erfc is below 1e-28 from here on; denormal numbers, which are slow, do not arise
ERFC = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


def sigmoid(v: Vectors, values: Sequence[Value]) -> list[Value]:
    """Return 1 / (1 + exp(-x)), from exp(-|x|), which can't overflow."""
    one, zero = v.all(1.0), v.all(0.0)
    powers = v.exp2([T.min(x, zero - x) * v.all(math.log2(math.e)) for x in values])
    result = []
    for x, power in zip(values, powers, strict=True):
        inverse = T.bind(one / (one + power))
        result.append(T.Select(x >= zero, inverse, power * inverse))
    return result


def silu(v: Vectors, values: Sequence[Value]) -> list[Value]:
    """Return x sigmoid(x)."""
    return [T.bind(x * s) for x, s in zip(values, sigmoid(v, values), strict=True)]


def gelu(v: Vectors, values: Sequence[Value]) -> list[Value]:
    """Return x Phi(x), Phi the normal distribution function."""
    one, zero, half = v.all(1.0), v.all(0.0), v.all(0.5)
    sizes = [T.max(x, zero - x) * v.all(math.sqrt(0.5)) for x in values]
    scaled = [T.bind(T.min(size, v.all(FAR))) for size in sizes]
    powers = v.exp2([zero - x * x * v.all(math.log2(math.e)) for x in scaled])
    result = []
    for x, s, power in zip(values, scaled, powers, strict=True):
        t = T.bind(one / (one + v.all(ERFC_P) * s))
        series = v.all(ERFC[-1])
        for coefficient in ERFC[-2::-1]:
            series = T.bind(series * t + v.all(coefficient))
        tail = T.bind(half * t * series * power)
        result.append(T.bind(x * T.Select(x >= zero, one - tail, tail)))
    return result


def quick_gelu(v: Vectors, values: Sequence[Value]) -> list[Value]:
    """Return x sigmoid(1.702 x), CLIP's own approximation of GELU."""
    gates = sigmoid(v, [T.bind(x * v.all(QUICK)) for x in values])
    return [T.bind(x * gate) for x, gate in zip(values, gates, strict=True)]


ACTIVATIONS = {"silu": silu, "gelu": gelu, "quick_gelu": quick_gelu}
