"""The tokenizer of a checkpoint against transformers."""

import json
import shutil

import pytest
import tokenizers
from checkpoint_files import edit_json
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from models.checkpoint import load_checkpoint
from models.random_checkpoint import random_checkpoint

AWKWARD = [
    "",
    " ",
    "\n\t ",
    "A Photo of AN astronaut!",
    "it's 've don't 2026 1/2",
    "caf\u00e9 cafe\u0301 \u4f60\u597d \u0130stanbul \u00df",
    "\U0001f680 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
    "<|endoftext|> in <|startoftext|> text !! !",
    "word " * 10_000,
    "x" * 10_000,
    "\0\x01\ufffd\ufeff",
]


@pytest.fixture(scope="module", params=["tiny", "tiny-sd2"])
def pair(request):
    checkpoint = random_checkpoint(request.param)
    return checkpoint.tokenizer, tokenizers.Tokenizer.from_str(checkpoint.tokenizer_json)


def theirs(tokenizer, prompt):
    return tokenizer(prompt, padding="max_length", truncation=True, max_length=77).input_ids


@pytest.mark.parametrize("prompt", AWKWARD, ids=lambda prompt: repr(prompt[:20]))
def test_tokenizer_json_gives_the_ids_of_transformers(pair, prompt):
    ids = pair[1].encode(prompt).ids
    assert ids == theirs(pair[0], prompt)
    assert len(ids) == 77


@given(st.text())
@settings(deadline=None, max_examples=200)
def test_tokenizer_json_gives_the_ids_of_transformers_for_any_text(pair, prompt):
    assert pair[1].encode(prompt).ids == theirs(pair[0], prompt)


def test_padding_is_the_checkpoint_s_own():
    sd1, sd2 = (tokenizers.Tokenizer.from_str(random_checkpoint(arch).tokenizer_json) for arch in ("tiny", "tiny-sd2"))
    assert sd1.encode("").ids == [638] + [639] * 76
    assert sd2.encode("").ids == [638, 639] + [0] * 75


def test_vocabulary_and_merges_files_of_older_checkpoints(folder, original):
    """Stable Diffusion 1.5's tokenizer folder, in the form that it was published in."""
    value = json.loads((folder / "tokenizer/tokenizer.json").read_text())
    shutil.rmtree(folder / "tokenizer")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer/vocab.json").write_text(json.dumps(value["model"]["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in value["model"]["merges"])
    (folder / "tokenizer/merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    added = {"__type": "AddedToken", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    config = {
        "add_prefix_space": False,
        "bos_token": added | {"content": "<|startoftext|>"},
        "do_lower_case": True,
        "eos_token": added | {"content": "<|endoftext|>"},
        "model_max_length": 77,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": added | {"content": "<|endoftext|>"},
    }
    (folder / "tokenizer/tokenizer_config.json").write_text(json.dumps(config))
    new = load_checkpoint(str(original)).tokenizer
    old = tokenizers.Tokenizer.from_str(load_checkpoint(str(folder)).tokenizer_json)
    for prompt in AWKWARD:
        assert old.encode(prompt).ids == theirs(new, prompt)


def test_a_tokenizer_without_a_length_takes_the_text_encoder_s(folder):
    edit_json(folder / "tokenizer/tokenizer_config.json", model_max_length=...)
    assert CLIPTokenizer.from_pretrained(folder / "tokenizer").model_max_length > 77
    checkpoint = load_checkpoint(str(folder))
    assert len(tokenizers.Tokenizer.from_str(checkpoint.tokenizer_json).encode("a dog").ids) == 77
