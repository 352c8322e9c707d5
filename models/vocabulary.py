"""A working CLIP tokenizer made in code, and any CLIP tokenizer as one self-sufficient JSON text."""

from __future__ import annotations

import json
from typing import Any

from transformers import CLIPTokenizer

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
WORDS = "a an the of on in and with to photo picture painting astronaut riding horse mars red blue green circle cat dog"


def byte_characters() -> list[str]:
    """Return the 256 characters that stand for bytes, printable ones first: the order of CLIP's and GPT-2's vocabulary.

    Radford et al., Language Models are Unsupervised Multitask Learners, 2019, section 2.2.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def merges() -> list[tuple[str, str]]:
    """Return byte-pair merges, in order of priority, that build ``WORDS`` from the left."""
    pairs: dict[tuple[str, str], None] = {}
    for word in WORDS.split():
        symbols = [*word[:-1], word[-1] + WORD_END]
        left = symbols[0]
        for right in symbols[1:]:
            pairs[left, right] = None
            left += right
    return list(pairs)


def random_tokenizer(size: int, length: int, pad_token: str) -> CLIPTokenizer:
    """Make a byte-level CLIP tokenizer with ``size`` entries that reads any text; the last two are begin and end.

    Entries between the merges and those two match no text, they only bring the vocabulary to its size.
    """
    pairs = merges()
    characters = byte_characters()
    entries = characters + [c + WORD_END for c in characters] + ["".join(pair) for pair in pairs]
    entries += [f"<unused-{i}>" for i in range(size - len(entries) - 2)] + [BOS, EOS]
    vocabulary = {entry: i for i, entry in enumerate(entries)}
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, pad_token=pad_token, model_max_length=length)


def tokenizer_json(tokenizer: CLIPTokenizer) -> str:
    """Return a ``tokenizers`` JSON text that cuts and pads every prompt to ``tokenizer.model_max_length`` ids.

    It gives the ids of ``tokenizer(prompt, padding="max_length", truncation=True)`` without transformers.
    """
    value: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    length = tokenizer.model_max_length
    value["truncation"] = {"direction": "Right", "max_length": length, "strategy": "LongestFirst", "stride": 0}
    value["padding"] = {
        "strategy": {"Fixed": length},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": tokenizer.pad_token_id,
        "pad_type_id": 0,
        "pad_token": tokenizer.pad_token,
    }
    return json.dumps(value, ensure_ascii=False)
