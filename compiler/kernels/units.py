"""The units that a kernel may multiply words with, by the name that a machine has for its own."""

from __future__ import annotations

from compiler.kernels.amx import Amx
from compiler.kernels.dot import Dot
from compiler.kernels.register_tile import Machine
from compiler.kernels.unit import Unit

UNITS: dict[str | None, type[Unit]] = {"amx": Amx, "dot": Dot}


def unit(machine: Machine) -> Unit:
    """Return the unit of ``machine``, for one kernel."""
    return UNITS[machine.unit]()
