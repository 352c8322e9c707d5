import json

import numpy as np
import pytest
from fake_artifact import END, LENGTH, START, write_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.tokenizer import Tokenizer
from utils.errors import UserError


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    write_tokenizer(file)
    return file


@pytest.fixture(scope="module")
def tokenizer(path):
    return Tokenizer(path)


@pytest.fixture(scope="module")
def vocabulary(path):
    return json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"]


def test_length_is_the_files(tokenizer):
    assert tokenizer.length == LENGTH


def test_ids_are_padded(tokenizer, vocabulary, capsys):
    start, end = vocabulary[START], vocabulary[END]
    expected = [start, vocabulary["a"], vocabulary["b</w>"], vocabulary["c</w>"], *[end] * (LENGTH - 4)]
    ids = tokenizer.encode("aB c")
    assert (ids.dtype, ids.tolist()) == (np.int64, [expected])
    assert tokenizer.encode("").tolist() == [[start, *[end] * (LENGTH - 1)]]
    assert capsys.readouterr().err == ""


def test_what_fits_exactly_is_not_cut(tokenizer, capsys):
    tokenizer.encode("abcde fghij")  # ten tokens and the two ends
    assert capsys.readouterr().err == ""
    ids = tokenizer.encode("abcde fghij K\n l")
    told = "warning: the prompt is longer than the 12 tokens that the model reads; "
    assert capsys.readouterr().err == told + '2 words were cut: "K l"\n'
    tokenizer.encode("abcde fghij K")
    assert capsys.readouterr().err == told + '1 word was cut: "K"\n'
    assert np.array_equal(ids, tokenizer.encode("abcde fghij"))


def test_ten_thousand_words_are_told_in_one_short_line(tokenizer, capsys):
    tokenizer.encode(" ".join(f"w{i}" for i in range(10_000)))
    (line,) = capsys.readouterr().err.splitlines()
    assert "9995 words were cut" in line
    assert '"w5 w6 ' in line
    assert line.endswith(' w9999"')
    assert len(line) < 250


def test_four_byte_emoji_is_four_tokens(tokenizer, vocabulary):
    ids = tokenizer.encode("\U0001f600")[0]
    assert len(set(ids[1:5].tolist())) == 4
    assert ids[5] == vocabulary[END]


def test_an_argument_that_is_no_utf8(tokenizer):
    assert np.array_equal(tokenizer.encode("a\udc80"), tokenizer.encode("a?"))


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=40))
def test_every_text_gives_one_row_between_start_and_end(tokenizer, vocabulary, text):
    ids = tokenizer.encode(text)
    assert (ids.shape, ids.dtype) == ((1, LENGTH), np.int64)
    assert (ids[0, 0], ids[0, -1]) == (vocabulary[START], vocabulary[END])


def test_without_truncation_and_padding_it_is_refused(tmp_path):
    write_tokenizer(tmp_path / "tokenizer.json", length=None)
    with pytest.raises(UserError, match="one length"):
        Tokenizer(tmp_path / "tokenizer.json")


def test_truncation_and_padding_must_agree(tmp_path, path):
    value = json.loads(path.read_text(encoding="utf-8"))
    value["padding"]["strategy"] = {"Fixed": LENGTH + 1}
    (tmp_path / "tokenizer.json").write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(UserError, match="one length"):
        Tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\x00", b"[1]"])
def test_a_file_that_is_no_tokenizer(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        Tokenizer(tmp_path / "tokenizer.json")
