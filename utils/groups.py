"""The control groups of this process (Linux, versions 1 and 2), which limit cores and memory in containers.

Source: Linux, Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

OWN, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def groups(controller: str) -> Iterator[tuple[Path, int]]:
    """Yield folder and version of each group that limits this process by ``controller``, its own before its parents.

    In a container the path that the system tells may be that of the host, and the folder is not there; its parents are.
    """
    try:
        lines = [line.split(":", 2) for line in OWN.read_text().splitlines()]
    except OSError:
        return
    for number, controllers, path in (line for line in lines if len(line) == 3):
        if number == "0" and not controllers:
            root, version = GROUPS, 2
        elif controller in controllers.split(","):
            root, version = GROUPS / controller, 1
        else:
            continue
        folder = root / path.lstrip("/")
        yield from ((parent, version) for parent in (folder, *folder.parents) if parent.is_relative_to(root))


def number(path: Path) -> int | None:
    """Return the number in a file, or None where there is none: no file, or ``max``."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # -1 and "max" are no limit


def core_quota() -> float | None:
    """Return how many cores' time this process may use, as in 1.5, or None where nothing limits it."""
    found = []
    for folder, version in groups("cpu"):
        if version == 2:
            try:
                quota, _, period = (folder / "cpu.max").read_text().strip().partition(" ")
            except OSError:
                continue
        else:
            quota, period = (str(number(folder / f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
        if quota.isdigit() and period.isdigit() and int(period):
            found.append(int(quota) / int(period))
    return min(found, default=None)
