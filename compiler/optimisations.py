"""The optimisations by name. Each can be left out of a build with --disable."""

from __future__ import annotations

from utils.errors import choose

OPTIMISATIONS = {
    "layout": "channels-last convolutions and cancelled transposes",
    "fusion": "element-wise operations joined to their producer",
    "flash_attention": "attention without a stored score matrix",
    "packed_matmul": "matrix multiplies on weights packed in panels, with bias and residual added in registers",
    "packed_conv": "convolutions on weights packed in panels, with bias and residual added in registers",
}
ALL = "all"


def enabled(disable: str) -> dict[str, bool]:
    """Return which optimisations are on, given the value of --disable.

    Raises:
        UserError: a name is unknown; the choices and the nearest are named.
    """
    names = {choose("--disable", name.strip(), [*OPTIMISATIONS, ALL]) for name in disable.split(",") if name.strip()}
    return {name: name not in names and ALL not in names for name in OPTIMISATIONS}
