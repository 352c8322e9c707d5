"""One process at a time writes to a folder; another one waits or is told who is there."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from utils.errors import UserError
from utils.signals import undisturbed


def _open_locked(path: Path, named: str, does: str, instead: str | None) -> IO[str]:
    """Return the lock file, open and ours; who has it is told while we wait.

    Raises:
        UserError: another process has it, and there is something to do ``instead`` of waiting.
    """
    while True:
        stream = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            holder = stream.read().strip() or "another process"
            if instead is not None:
                stream.close()
                raise UserError(f"{named}: {holder} {does} there; {instead}") from None
            print(f"waiting for {holder}, which {does} into {named}", flush=True)
            fcntl.flock(stream, fcntl.LOCK_EX)
        if path.exists() and os.path.samestat(os.fstat(stream.fileno()), path.stat()):
            return stream
        stream.close()  # whoever had it removed it, and somebody may have made a new one


@contextmanager
def locked(flag: str, folder: Path, does: str, instead: str | None) -> Iterator[None]:
    """Keep other processes that do the same out of ``folder``. The system frees the lock of one that was killed.

    Raises:
        UserError: see ``_open_locked``; or the lock can't be written.
    """
    folder = folder.absolute()
    path = folder.parent / f".{folder.name}.lock"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        stream = _open_locked(path, f"{flag} {folder}", does, instead)
    except OSError as error:
        raise UserError(f"{flag} {folder} can't be written: {error.strerror}") from None
    with stream:
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()} (since {time.strftime('%H:%M:%S')})\n")
        stream.flush()
        try:
            yield
        finally:
            with undisturbed():
                path.unlink(missing_ok=True)
