"""Intervals, percentiles and lines, against NumPy and printed tables."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.statistics import interval, linear_fit, percentile, student_quantile

SECONDS = st.floats(1e-4, 1e3)


@given(st.lists(SECONDS, min_size=1, max_size=40))
def test_the_interval_encloses_the_median(values):
    low, high = interval(values)
    assert low in values and high in values and low <= statistics.median(values) <= high
    if len(values) < 6:
        assert (low, high) == (min(values), max(values))


@pytest.mark.parametrize(("count", "left_out"), [(5, 0), (8, 0), (9, 1), (20, 5), (100, 39)])
def test_the_interval_is_as_narrow_as_its_confidence_allows(count, left_out):
    """The numbers are those of the usual table of order statistics for a median at 95 %."""
    assert interval(range(count)) == (left_out, count - 1 - left_out)
    assert 2 * sum(math.comb(count, i) for i in range(left_out + 1)) / 2**count <= 0.05 or count < 6


@given(st.lists(SECONDS, min_size=1, max_size=40), st.floats(0, 100))
def test_percentiles_are_those_of_numpy(values, q):
    assert percentile(values, q) == pytest.approx(np.percentile(values, q), rel=1e-12)
    assert percentile(values, 0) == min(values) and percentile(values, 100) == max(values)


@pytest.mark.parametrize(("values", "q"), [([], 50), ([1.0], -1), ([1.0], 101), ([1.0], math.nan)])
def test_a_percentile_of_nothing_is_refused(values, q):
    with pytest.raises(ValueError, match="no percentile"):
        percentile(values, q)


@pytest.mark.parametrize(
    ("p", "freedom", "expected"),
    [
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.975, 3, 3.182),
        (0.975, 8, 2.306),
        (0.975, 30, 2.042),
        (0.975, 1000, 1.962),
        (0.9, 7, 1.415),
        (0.95, 60, 1.671),
        (0.9995, 1, 636.619),
        (0.9995, 5, 6.869),
        (0.9995, 8, 5.041),
        (0.5, 4, 0.0),
    ],
)
def test_quantiles_are_those_of_the_printed_table_of_t(p, freedom, expected):
    assert student_quantile(p, freedom) == pytest.approx(expected, abs=5.1e-4)


@pytest.mark.parametrize(("p", "freedom"), [(0.4, 3), (1.0, 3), (0.9, 0)])
def test_a_quantile_out_of_range_is_refused(p, freedom):
    with pytest.raises(ValueError, match="no quantile"):
        student_quantile(p, freedom)


@given(st.floats(-100, 100), st.floats(-100, 100), st.integers(3, 30))
def test_a_line_without_noise_is_found(slope, intercept, count):
    found = linear_fit(range(count), [intercept + slope * x for x in range(count)])
    assert found.slope == pytest.approx(slope, abs=1e-9)
    assert found.intercept == pytest.approx(intercept, abs=1e-9)
    assert found.interval == pytest.approx((slope, slope), abs=1e-9)
    assert found.r2 == pytest.approx(1) or abs(slope) < 1e-9


def test_a_worked_example():
    """y = 0.6 x + 2.2 for these five points; its standard error is sqrt(0.08), t with three degrees 3.182."""
    found = linear_fit([1, 2, 3, 4, 5], [2, 4, 5, 4, 5])
    assert (found.slope, found.intercept, found.r2) == pytest.approx((0.6, 2.2, 0.6))
    assert found.interval == pytest.approx((0.6 - 3.1824 * 0.08**0.5, 0.6 + 3.1824 * 0.08**0.5), abs=1e-4)


def test_the_interval_of_the_slope_holds_it_95_times_of_100():
    rng, x = np.random.default_rng(0), [1.0, 2.0, 5.0, 10.0, 20.0]
    fits = [linear_fit(x, list(3 + 0.5 * np.array(x) + rng.normal(0, 0.3, 5))) for _ in range(2000)]
    assert 0.94 <= np.mean([fit.interval[0] <= 0.5 <= fit.interval[1] for fit in fits]) <= 0.96


@pytest.mark.parametrize(("x", "y"), [([1, 2], [1, 2]), ([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [1, 2])])
def test_a_line_that_has_no_interval_is_refused(x, y):
    with pytest.raises(ValueError, match="three points"):
        linear_fit(x, y)


def test_a_level_line_fits():
    assert linear_fit([1, 2, 3], [4, 4, 4]).r2 == 1
