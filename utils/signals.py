"""Ctrl-C and SIGTERM while something must not be left half done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

PUT_OFF = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put Ctrl-C and SIGTERM off until the block is done, which is to be short.

    A mask would not do: the system gives a signal to any thread, and Python handles it in the main one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # nobody is interrupted here
        return
    received: list[int] = []
    before = {number: signal.signal(number, lambda got, _frame: received.append(got)) for number in PUT_OFF}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if received:
            signal.raise_signal(received[0])
