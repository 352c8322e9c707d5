"""Progress bars with the time left, on stderr, quiet where stderr is not a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield ``items`` and draw a bar with count, rate and time left."""
    bar = tqdm(items, desc=description, total=total, disable=not _is_terminal(), leave=False, dynamic_ncols=True)
    yield from bar


def say(text: str) -> None:
    """Print a line on stdout, at once, above any bar."""
    with tqdm.external_write_mode():
        print(text, flush=True)


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()  # None: the stream was closed by whoever started us
