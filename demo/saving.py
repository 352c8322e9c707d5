"""Files and folders that appear whole or not at all, on a disk that may fill."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from utils.errors import UserError


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Give a temporary name beside ``path`` to write to; what is left there in the end is removed.

    Raises:
        UserError: writing failed, on a full disk for one. What was at ``path`` before is intact.
    """
    temporary = path.with_name(path.name + ".partial")
    try:
        _remove(temporary)
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} can't be written ({reason}); what was there before is intact") from error
    finally:
        _remove(temporary)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to, which takes the place of ``path``, a file or a folder, if all goes well.

    Raises:
        UserError: see ``beside``.
    """
    with beside(path) as temporary:
        yield temporary
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)


def _remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
