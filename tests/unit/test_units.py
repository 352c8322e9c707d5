import io
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils import units
from utils.memory import peak_memory
from utils.progress import progress, say


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 ms"),
        (0.85, "850 ms"),
        (0.9999, "1.0 s"),
        (59.97, "1 min 00 s"),
        (12.34, "12.3 s"),
        (245, "4 min 05 s"),
        (7380, "2 h 03 min"),
        (3600, "1 h 00 min"),
    ],
)
def test_seconds(value, text):
    assert units.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1000, "1 kB"),
        (1.5e6, "1.5 MB"),
        (3.44e9, "3.44 GB"),
        (2e12, "2 TB"),
        (5e15, "5e+03 TB"),
    ],
)
def test_size(value, text):
    assert units.size(value) == text


@given(st.floats(0, 1e6), st.floats(0, 9e14))
def test_what_rounds_up_takes_the_next_unit(duration, count):
    assert not units.seconds(duration).startswith(("1000 ms", "60.0 s", "60 min"))
    assert " 60" not in units.seconds(duration)
    assert not units.size(count).startswith(("1000", "1e+03"))


def test_peak_memory_counts_bytes():
    before = peak_memory()
    block = bytearray(os.urandom(1 << 20)) * 64
    assert 64 << 20 <= peak_memory() < 1 << 40
    assert peak_memory() >= before
    del block


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_draws_on_a_terminal_only(monkeypatch, capsys):
    assert list(progress(iter(range(3)), "steps", 3)) == [0, 1, 2]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(progress(range(3), "steps")) == [0, 1, 2]
    assert "steps" in sys.stderr.getvalue()
    monkeypatch.setattr(sys, "stderr", None)
    assert list(progress(range(3), "steps")) == [0, 1, 2]


def test_say_prints_a_line(capsys):
    say("a line")
    assert capsys.readouterr().out == "a line\n"
