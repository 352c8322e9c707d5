"""Times and sizes as people read them."""

from __future__ import annotations


def seconds(value: float) -> str:
    """Format a duration: ``850 ms``, ``12.3 s``, ``4 min 05 s``, ``2 h 03 min``."""
    if value < 0.9995:  # what rounds up takes the next unit
        return f"{value * 1e3:.0f} ms"
    if value < 59.95:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(value: float) -> str:
    """Format a number of bytes in decimal units: ``512 B``, ``1.5 MB``, ``3.44 GB``."""
    if value < 999.5:
        return f"{value:.0f} B"
    units = ["kB", "MB", "GB", "TB"]
    value /= 1000
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.3g} {units[0]}"
