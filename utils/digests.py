"""SHA-256 of files, remembered by size and time stamp, and the folder that what may be made anew is kept in."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

BLOCK = 1 << 22
MOST = 5000  # digests that are remembered
CACHE_VARIABLE = "TVMERGE_CACHE"


def cache_folder() -> Path:
    """Return the folder of the cache: TVMERGE_CACHE, or tvmerge in XDG_CACHE_HOME or ~/.cache."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tvmerge"


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"


def _remembered() -> dict[str, str]:
    try:
        values = json.loads((cache_folder() / "digests.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def remember(digests: dict[Path, str]) -> None:
    """Remember digests of files. Where the cache can't be written they are not."""
    known = _remembered() | {_stamp(path): digest for path, digest in digests.items()}
    temporary = cache_folder() / f".digests-{os.getpid()}"
    with contextlib.suppress(OSError):
        cache_folder().mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(json.dumps(dict(list(known.items())[-MOST:])), encoding="utf-8")
            temporary.replace(cache_folder() / "digests.json")
        finally:
            temporary.unlink(missing_ok=True)


def known_digests(paths: list[Path]) -> dict[Path, str]:
    """Return the SHA-256 of each file; one whose size and time stamp did not change is not read again."""
    known = _remembered()
    found = {path: known.get(_stamp(path)) for path in paths}
    new = {path: sha256(path) for path, digest in found.items() if digest is None}
    if new:
        remember(new)
    return {path: digest or new[path] for path, digest in found.items()}
