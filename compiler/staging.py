"""An artifact is filled aside and takes its place at one stroke: an interrupted build leaves the old one intact."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.artifact import MANIFEST
from utils.errors import UserError
from utils.signals import undisturbed

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # Linux, renameat2(2)


def is_running(pid: str) -> bool:
    """Tell whether there is a process of this number."""
    try:
        os.kill(int(pid), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except PermissionError:
        pass
    return True


def _remove_leftovers(target: Path) -> None:
    """Remove what builds of this folder left that were killed; one that was killed while renaming is undone."""
    for role in ("old", "partial"):
        for path in target.parent.glob(f".{target.name}.{role}-*"):
            if is_running(path.name.rpartition("-")[2]):
                continue
            if role == "old" and not target.exists():
                path.rename(target)
            shutil.rmtree(path, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Give two folders each other's name at one stroke, or return False where the system can't."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    names = (os.fsencode(path) for path in (one, other))
    return rename is not None and rename(AT_FDCWD, next(names), AT_FDCWD, next(names), RENAME_EXCHANGE) == 0


def _put_in_place(staging: Path, target: Path, old: Path) -> None:
    """Make ``staging`` the folder ``target``. What was there is then called ``staging`` or ``old``."""
    if target.exists() and _exchange(staging, target):
        return
    if target.exists():
        target.rename(old)
    staging.rename(target)


@contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Have this process, and those that it starts, keep temporary files in ``folder``, which is gone afterwards."""
    before, variable = tempfile.tempdir, os.environ.get("TMPDIR")
    folder.mkdir()
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
        if variable is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = variable
        shutil.rmtree(folder, ignore_errors=True)


def check_output(target: Path) -> None:
    """Refuse to replace what is no artifact.

    Raises:
        UserError: ``target`` is a file, or a folder with something else in it.
    """
    if target.exists() and not target.is_dir():
        raise UserError(f"--output-dir {target} is a file; choose a folder")
    if target.is_dir() and any(target.iterdir()) and not (target / MANIFEST).is_file():
        raise UserError(f"--output-dir {target} is not empty and holds no artifact; choose another folder")


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Give a temporary sibling of ``target`` to fill; when the block ends well it takes the place of ``target``.

    When the block fails or is interrupted, the sibling is removed and ``target`` is as it was. Temporary files lie in
    the sibling too: when the build is killed, the next one finds all of its debris there.

    Raises:
        UserError: ``target`` is a folder of something else, or nothing can be written there.
    """
    check_output(target)
    target = target.absolute()
    staging, old = (target.parent / f".{target.name}.{role}-{os.getpid()}" for role in ("partial", "old"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        staging.mkdir()
    except OSError as error:
        raise UserError(f"--output-dir {target} can't be written: {error.strerror}") from None
    try:
        with _temporary_files_in(staging / "tmp"):
            yield staging
        with undisturbed():
            _put_in_place(staging, target, old)
    except OSError as error:
        raise UserError(f"--output-dir {target}: {error.strerror or error}") from error
    finally:
        with undisturbed():
            if old.exists() and not target.exists():
                old.rename(target)
            for path in (staging, old):
                shutil.rmtree(path, ignore_errors=True)
