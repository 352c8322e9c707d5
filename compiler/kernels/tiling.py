"""What tuning may choose of a kernel: the fields of a frozen dataclass, each with its choices, the kernel's own first.

A field of 0 leaves the decision to the kernel.
"""

from __future__ import annotations

import dataclasses
from typing import Any


def choice(own: int, *others: int) -> Any:
    """Declare a field that tuning may set to ``others`` in the place of the kernel's ``own``."""
    return dataclasses.field(default=own, metadata={"choices": (own, *others)})


def choices(tiling: type) -> dict[str, tuple[int, ...]]:
    """Return the choices of each field, the kernel's own first."""
    return {field.name: field.metadata["choices"] for field in dataclasses.fields(tiling)}
