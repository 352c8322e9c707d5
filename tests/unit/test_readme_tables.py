"""The README's tables: those of the committed results, and made as they say."""

import pytest
from report_example import example

from benchmarks import schema
from benchmarks.readme import README, TABLES, written
from utils.config import ROOT
from utils.errors import UserError


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    schema.write(example(folder), folder / "a.json")
    return tmp_path


def place(section, file="results/a.json"):
    return f"before\n<!-- {file} {section} -->\nold\n<!-- end -->\nafter\n"


def test_the_readme_has_the_tables_of_the_committed_results():
    text = README.read_text(encoding="utf-8")
    assert written(text, ROOT) == text, "run python -m benchmarks.readme"


@pytest.mark.parametrize("section", TABLES)
def test_a_section_becomes_a_table(root, section):
    text = written(place(section), root)
    assert text.startswith("before\n<!-- ") and text.endswith("<!-- end -->\nafter\n") and "old" not in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) >= 3 and len({line.count("|") for line in lines}) == 1
    assert "commit ec8ae82+" in text and "[a.json](results/a.json)" in text
    assert written(text, root) == text


def test_intervals_and_reasons_are_told(root):
    text = written(place("backends"), root)
    assert "| skipped: not installed: pip install onnxruntime |" in text
    assert "| openvino (512x512) |" in text and "(0.39–0.40) |" in text


def test_several_tables_of_a_text(root):
    text = written(place("ladder") + place("latency"), root)
    assert text.count("| --- |") >= 2 and text.count("<!-- end -->") == 2


@pytest.mark.parametrize(
    ("section", "file", "words"),
    [
        ("ladders", "results/a.json", "no table of 'ladders'"),
        ("backends", "results/none.json", "can't be read"),
        ("backends", "results/empty.json", "nothing in backends"),
    ],
)
def test_what_there_is_no_table_of(root, section, file, words):
    schema.write(schema.Results(schema.read(root / "results/a.json").environment, {}), root / "results/empty.json")
    with pytest.raises(UserError, match=words):
        written(place(section, file), root)
