"""How close a result is to a reference."""

from __future__ import annotations

import math

import numpy as np

FLOOR = {"float32": 60.0, "float16": 35.0, "bfloat16": 35.0}  # dB, that a component is accepted from
EQUAL = 200.0  # dB, in place of infinity, which JSON lacks


def psnr(reference: np.ndarray, result: np.ndarray) -> float:
    """Return 20 log10(max|reference| / RMSE) in dB.

    Minus infinity when a value is not finite, shapes differ or the reference is constant, which proves nothing;
    infinity when they are equal.
    """
    if reference.shape != result.shape or not np.isfinite(result).all() or np.ptp(reference) == 0:
        return -math.inf
    error = math.sqrt(np.mean((reference.astype("float64") - result.astype("float64")) ** 2))
    return math.inf if error == 0 else 20 * math.log10(np.abs(reference).max() / error)


def finite(decibels: float) -> float:
    """Return a PSNR as JSON can hold it: rounded to two decimals, from -EQUAL to EQUAL."""
    return round(max(-EQUAL, min(decibels, EQUAL)), 2)
