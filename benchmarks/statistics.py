"""What follows from repeated measurements: intervals, percentiles, the line through points. Pure Python."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

CONFIDENCE = 0.95
BISECTIONS = 100  # of an interval below 2^60: finer than float64


@dataclass(frozen=True)
class Fit:
    """The line ``intercept + slope * x``. ``interval`` holds the slope with 95 % confidence."""

    slope: float
    intercept: float
    r2: float
    interval: tuple[float, float]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return an interval for the median with at least 95 % confidence; of fewer than six values it is their range.

    The k-th smallest and the k-th largest of n values enclose the median but for a chance of 2 P(Binomial(n, 1/2) < k).
    """
    ordered, k = sorted(values), 1
    while 2 * sum(math.comb(len(ordered), i) for i in range(k + 1)) / 2 ** len(ordered) <= 1 - CONFIDENCE:
        k += 1
    return ordered[k - 1], ordered[-k]


def percentile(values: Sequence[float], q: float) -> float:
    """Return the ``q``-th percentile, 0 to 100: the straight line between the two nearest values, as NumPy has it.

    Raises:
        ValueError: there are no values, or ``q`` is out of range.
    """
    if not values or not 0 <= q <= 100:
        raise ValueError(f"no percentile {q} of {len(values)} values")
    ordered = sorted(values)
    below, share = divmod((len(ordered) - 1) * q / 100, 1)
    low, high = ordered[int(below)], ordered[min(int(below) + 1, len(ordered) - 1)]
    return min(high, low + share * (high - low))


def linear_fit(x: Sequence[float], y: Sequence[float]) -> Fit:
    """Fit a line by least squares. The slope's interval takes errors of ``y`` as normal and of one size (Student's t).

    Raises:
        ValueError: there are fewer than three points, lengths differ, or all ``x`` are the same.
    """
    if len(x) < 3 or len(x) != len(y) or min(x) == max(x):
        raise ValueError("a line with an interval needs three points or more, at different x")
    slope, intercept = statistics.linear_regression(x, y)
    x_mean, y_mean = statistics.fmean(x), statistics.fmean(y)
    residual = math.fsum((b - intercept - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    total, spread = math.fsum((b - y_mean) ** 2 for b in y), math.fsum((a - x_mean) ** 2 for a in x)
    freedom = len(x) - 2
    half = student_quantile((1 + CONFIDENCE) / 2, freedom) * math.sqrt(residual / freedom / spread)
    return Fit(slope, intercept, max(0.0, 1 - residual / total) if total else 1.0, (slope - half, slope + half))


@lru_cache
def student_quantile(p: float, freedom: int) -> float:
    """Return the ``p``-quantile of Student's t with ``freedom`` degrees of freedom, 1/2 <= p < 1, by bisection.

    Raises:
        ValueError: ``p`` or ``freedom`` is out of range.
    """
    if not (0.5 <= p < 1 and freedom >= 1):
        raise ValueError(f"no quantile {p} of Student's t with {freedom} degrees of freedom")
    low, high = 0.0, 1.0
    while _student_probability(high, freedom) < p:
        high *= 2
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_probability(middle, freedom) < p else (low, middle)
    return high


def _student_probability(t: float, freedom: int) -> float:
    """Return P(T <= t), t >= 0, by the finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= k / (k + 1) * math.cos(angle) ** 2
    within = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    return (1 + within) / 2
