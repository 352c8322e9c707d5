"""What a kernel's entry in the registry is made of, and how dispatch and an entry talk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import relax, tirx

from compiler.graph import static_shape

IsWeight = Callable[[relax.Expr], bool]  # whether a value is known when parameters are packed
KERNEL = "tvmerge.kernel"  # attribute of a kernel of ours: its name; such a function is in its final form


@dataclass(frozen=True)
class Added:
    """An operand that is added to a kernel's result: as a matrix, it has this many rows."""

    value: relax.Expr
    rows: int


@dataclass(frozen=True)
class Plan:
    """A kernel for one call: its name, the cached maker of its function with arguments, its operands and results.

    ``output`` is the shape of each of its ``results``, which are of ``dtype``.
    """

    name: str
    make: Callable[..., tirx.PrimFunc]
    arguments: tuple[Any, ...]
    operands: Callable[[relax.BlockBuilder], list[relax.Expr]]
    output: list[int]
    results: int = 1
    dtype: str = "float32"


@dataclass(frozen=True)
class Fused:
    """What a kernel does besides its operator.

    It reads the concatenation of ``joined`` in place of its data, or that upsampled; then come additions in order, an
    activation, and even shares of the columns as results of their own.
    """

    added: Sequence[Added] = ()
    activation: str | None = None
    upsample: int = 1
    results: int = 1
    joined: Sequence[relax.Expr] = ()

    def sources(self, data: relax.Expr) -> list[relax.Expr]:
        """Return what is read in the place of ``data``."""
        return list(self.joined) or [data]

    @property
    def widths(self) -> tuple[int, ...]:
        """The channels of what is joined."""
        return tuple(static_shape(value)[-1] for value in self.joined)


@dataclass(frozen=True)
class Entry:
    """A kernel in the registry, used while all of ``optimisations`` are on. Its machine is a CPU's or a GPU's.

    ``accepts`` looks at a call and at the machine, ``plan`` makes the kernel's call, and where several kernels take an
    operator, ``cost`` estimates their time in multiply-adds of vector registers, of data that is upsampled by a factor.
    ``adds``, ``activations`` and ``splits`` tell what the kernel can do besides; activations only where the
    optimisation ``fuses`` is on. ``upsamples`` tells whether it can read data that is upsampled by this factor on the
    way, ``joins`` whether it can read channels of these widths side by side.
    """

    optimisations: tuple[str, ...]
    operator: str
    accepts: Callable[[relax.Call, IsWeight, Any], bool]
    plan: Callable[[relax.Call, Fused, Any], Plan]
    cost: Callable[[relax.Call, Any, int], float] = lambda _call, _machine, _upsample: 0.0
    adds: bool = False
    activations: tuple[str, ...] = ()
    upsamples: Callable[[relax.Call, int, Any], bool] = lambda _call, factor, _machine: factor == 1
    splits: bool = False
    fuses: str = ""
    joins: Callable[[relax.Call, Sequence[int], Any], bool] = lambda _call, _widths, _machine: False


def is_float32(*values: relax.Expr) -> bool:
    """Tell whether all values are tensors of float32."""
    return all(value.ty.dtype == "float32" for value in values)
