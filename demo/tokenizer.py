"""A small CLIP tokenizer whose merges make each word of the demo's captions one token."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77


def byte_alphabet() -> list[str]:
    """Return the 256 printable characters that byte-level BPE writes bytes as, in byte order (GPT-2's table)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = (byte for byte in range(256) if byte not in printable)
    moved = {byte: 256 + i for i, byte in enumerate(others)}
    return [chr(moved.get(byte, byte)) for byte in range(256)]


def learn_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Return the merges of byte-pair encoding (Sennrich et al. 2016), run until each ASCII word is one token.

    The most frequent pair goes first, the alphabetically first of equals; a word ends in ``</w>``.
    """
    split = {word: [*word[:-1], word[-1] + "</w>"] for word in sorted(set(words))}
    merges = []
    while pairs := Counter(p for parts in split.values() for p in pairwise(parts)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        split = {word: _merge(parts, best) for word, parts in split.items()}
    return merges


def _merge(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged


def write_tokenizer(words: Iterable[str], folder: Path) -> None:
    """Write the files of a CLIP tokenizer for ``words``; any other text falls apart into smaller tokens and bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    letters, merges = byte_alphabet(), learn_merges(words)
    entries = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge) for merge in merges)]
    vocabulary = {entry: i for i, entry in enumerate(dict.fromkeys([*entries, START, END]))}
    CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH).save_pretrained(folder)
    # what older releases of transformers, and readers without it, load
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n", encoding="utf-8")
