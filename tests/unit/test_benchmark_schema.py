"""The file of results: read as it was written, refused where it is not one; and its tables."""

import dataclasses
import json

import pytest
from recordings import PEAK, SUBJECT, recording

from benchmarks import schema
from benchmarks.schema import (
    AttentionRow,
    Backend,
    Environment,
    Latency,
    ProfileRow,
    Results,
    Rung,
    Throughput,
    TomeRow,
    WinogradRow,
)
from benchmarks.tables import SECTIONS, tables
from runtime.profile import summarise
from utils.errors import UserError

PLACE = Environment("a CPU", ["avx2"], 2, 2, 8_000_000_000, "Linux", "3.11", {"torch": None}, "abc+", "2026-01-01")


@pytest.fixture
def results():
    """Every section with a row, and a backend and a rung that were skipped."""
    made = Results(PLACE, {"steps": 5})
    made.backends.extend(
        [
            Backend("eager", "64x64", skipped="no luck"),
            Backend(
                *("tvm", "64x64", None, {"load": 0.5}, 3.0, [2.0, 2.1, 2.2], [0.1] * 3, [1.5] * 3, [0.4] * 3),
                *(3.3, 5_000_000, 6_000_000, 80.0, [2.0] * 3, 0.5, [0.4, 0.6], "a.png"),
            ),
        ]
    )
    made.ladder.extend(
        [Rung("nothing", [3.0], [3.0], 1.0, 1.0, 7_000_000, 8_000_000, 100.0), Rung("x", skipped="no luck")]
    )
    made.attention.append(AttentionRow("self 64x64", 8, 64, 64, 40, 5, "flash", [0.001], 1000, 50.0, 120.0))
    made.winograd.append(WinogradRow("32 to 64, 8x8", 32, 64, 8, 8, 4, "4", [0.002], 0.5, 2000, 90.0))
    made.throughput.append(Throughput("tvm", "64x64", [1, 2, 3], [1.0, 2.0, 3.0], 0.0, 1.0, [0.9, 1.1], 1.0))
    made.latency.append(Latency("tvm", "64x64", [1.0, 2.0], 1.5, 1.9, 2.0))
    made.tome_sweep.append(
        TomeRow("tvm", "64x64", 0.5, "flash", [1.0], [1.25], 0.8, [2.0], 30.0, 0.9, 1.5, [1, 2], "b.png")
    )
    made.profiles.extend(
        [
            ProfileRow("eager", "64x64", "no luck"),
            ProfileRow("tvm", "64x64", profile=summarise(recording(), SUBJECT, PEAK)),
        ]
    )
    return made


def test_a_file_is_read_as_it_was_written(results, tmp_path):
    path = tmp_path / "a.json"
    schema.write(results, path)
    assert schema.read(path) == results
    assert list(tmp_path.iterdir()) == [path]
    value = json.loads(path.read_text())
    assert [row["name"] for row in value["backends"]] == ["eager", "tvm"]
    assert value["backends"][1]["unet_seconds"] == [1.5] * 3


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda text: text[: len(text) // 2], "can't be read"),
        (lambda text: text.replace('"schema": 2', '"schema": 3', 1), "has schema 3, this version reads 2"),
        (lambda text: "[]", "has schema None"),
        (lambda text: text.replace('"cores": 2', '"cores": "2"'), "environment.cores has the wrong type"),
        (lambda text: text.replace('"frechet":', '"freche":'), "tome_sweep[0] must have the keys"),
    ],
)
def test_what_is_no_such_file(results, tmp_path, edit, words):
    path = tmp_path / "a.json"
    schema.write(results, path)
    path.write_text(edit(path.read_text()))
    with pytest.raises(UserError) as caught:
        schema.read(path)
    assert words in str(caught.value) and "benchmark.py --json" in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="can't be read"):
        schema.read(tmp_path / "none.json")


def test_nan_is_never_written(results, tmp_path):
    path = tmp_path / "a.json"
    results.backends.append(dataclasses.replace(results.backends[1], psnr=float("nan")))
    with pytest.raises(ValueError, match="JSON"):
        schema.write(results, path)
    assert list(tmp_path.iterdir()) == []


def test_each_section_has_a_table(results):
    sections = {field.name for field in dataclasses.fields(Results) if str(field.type).startswith("list")}
    assert set(SECTIONS) == sections
    text = tables(results)
    assert all(f"\n\n{section}\n" in text for section in sections)
    assert "skipped: no luck" in text and "0.400-0.600" in text and text.startswith("a CPU, 2 threads")
    for block in text.split("\n\n")[1:]:
        whole = [line for line in block.splitlines()[1:] if "skipped" not in line]
        assert len({len(line) for line in whole}) <= 2, "columns end where their heads end"
    assert tables(Results(PLACE, {})) == text.partition("\n")[0]
