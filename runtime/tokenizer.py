"""From a prompt to token ids, by the artifact's own tokenizer.json."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import tokenizers

from utils.errors import UserError

SHOWN_OF_CUT = 80  # characters of the dropped text that the warning shows


class Tokenizer:
    """A tokenizer.json whose truncation and padding sections bring every prompt to ``length`` tokens.

    Raises:
        UserError: the file is no tokenizer, or one of the two sections is missing or disagrees with the other.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises no narrower class
            raise UserError(f"{path} is no tokenizer ({error}); build the artifact again") from None
        truncation, padding = self._tokenizer.truncation, self._tokenizer.padding
        if not truncation or not padding or truncation["max_length"] != padding["length"]:
            raise UserError(f"{path} doesn't cut and pad prompts to one length; build the artifact again")
        self.length: int = padding["length"]

    def encode(self, text: str) -> np.ndarray:
        """Return the token ids of a prompt, int64 [1, length]. What doesn't fit is cut and told on stderr."""
        text = text.encode("utf-8", "replace").decode("utf-8")  # lone surrogates: an argument that was no UTF-8
        encoding = self._tokenizer.encode(text)
        if encoding.overflowing:
            start = next(start for start, end in encoding.overflowing[0].offsets if end > start)
            _warn(self.length, text[start:])
        return np.array([encoding.ids], np.int64)


def _warn(length: int, cut: str) -> None:
    words = cut.split()
    shown = " ".join(words)
    if len(shown) > SHOWN_OF_CUT:
        shown = f"{shown[: SHOWN_OF_CUT // 2]} ... {shown[-SHOWN_OF_CUT // 2 :]}"
    count = "1 word was" if len(words) == 1 else f"{len(words)} words were"
    print(
        f'warning: the prompt is longer than the {length} tokens that the model reads; {count} cut: "{shown}"',
        file=sys.stderr,
    )
