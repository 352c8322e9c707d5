import sys

import pytest

from runtime import roofline
from runtime.roofline import Peak, measure, measure_apart
from utils.errors import UserError


def test_the_ridge_is_where_both_roofs_meet():
    assert Peak(100.0, 10.0, 1, "").ridge == 10.0


def test_another_process_measures_with_as_many_threads():
    peak = measure_apart(1)
    assert peak.num_threads == 1 and "NumPy" in peak.how
    assert 1e8 < peak.flops_per_second < 1e14 and 1e7 < peak.bytes_per_second < 1e13


def test_the_best_of_several_counts(monkeypatch):
    for name, value in (("SIZE", 64), ("COPIED", 1000), ("SECONDS", 0.0)):
        monkeypatch.setattr(roofline, name, value)
    peak = measure(3)
    assert peak.num_threads == 3 and peak.flops_per_second > 0 and peak.bytes_per_second > 0


@pytest.mark.parametrize("program", ["/does/not/exist", "false", "true"])
def test_a_failure_is_told(monkeypatch, program):
    monkeypatch.setattr(sys, "executable", program)
    with pytest.raises(UserError, match="this machine's peak can't be measured"):
        measure_apart(1)
