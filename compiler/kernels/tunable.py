"""The kernels that can be tuned, by the name of their plan, and a plan's arguments as text: the key of its records."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from tvm import tirx

from compiler.kernels import (
    conv2d,
    flash_attention,
    group_norm,
    matmul,
    tile_attention,
    tile_conv2d,
    tile_winograd,
    winograd,
)
from compiler.kernels.conv2d import ConvShape
from compiler.kernels.flash_attention import AttentionShape
from compiler.kernels.group_norm import GroupNormShape
from compiler.kernels.register_tile import Machine
from compiler.kernels.tiling import choices

TYPES = {kind.__name__: kind for kind in (AttentionShape, ConvShape, GroupNormShape, Machine)}
TYPE = "type"  # the key of a dataclass' name
LATER = ("shared",)  # fields that keys leave out where they are as usual: older keys have none


@dataclasses.dataclass(frozen=True)
class Tunable:
    """A kernel's maker, which takes ``tiling``, and the dataclass of what may be chosen.

    ``version`` is raised when the kernel's code changes so much that other choices may be best: records of another
    version are not used.
    """

    make: Callable[..., tirx.PrimFunc]
    tiling: type
    version: int = 1


TUNABLE = {
    "tile_conv2d": Tunable(tile_conv2d.tile_conv2d, tile_conv2d.Tiling),
    "tile_matmul": Tunable(tile_conv2d.tile_conv2d, tile_conv2d.Tiling),
    "tile_winograd": Tunable(tile_winograd.tile_winograd, tile_winograd.Tiling),
    "tile_attention": Tunable(tile_attention.tile_attention, tile_attention.Tiling),
    "matmul": Tunable(matmul.matmul, matmul.Tiling, 2),
    "conv2d": Tunable(conv2d.conv2d, conv2d.Tiling),
    **{f"winograd_{m}": Tunable(winograd.winograd, winograd.Tiling, 2) for m in winograd.OUTPUT_TILES},
    "flash_attention": Tunable(flash_attention.flash_attention, flash_attention.Tiling),
    "group_norm": Tunable(group_norm.group_norm, group_norm.Tiling),
}


def encode(arguments: tuple[Any, ...]) -> str:
    """Return a plan's arguments as text, the same for equal arguments."""

    def plain(value: Any) -> Any:
        if isinstance(value, Machine):  # the kernel's name has the tile that was asked for
            value = dataclasses.replace(value, winograd_tile=None)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {f.name: (getattr(value, f.name), f.default) for f in dataclasses.fields(value)}
            told = {name: plain(own) for name, (own, usual) in fields.items() if name not in LATER or own != usual}
            return {TYPE: type(value).__name__, **told}
        return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value

    return json.dumps(plain(arguments), sort_keys=True)


def decode(text: str) -> tuple[Any, ...]:
    """Return the arguments that ``encode`` made ``text`` of.

    Raises:
        ValueError, TypeError, KeyError: the text is none of its.
    """

    def rich(value: Any) -> Any:
        if isinstance(value, dict):
            fields = {name: rich(item) for name, item in value.items() if name != TYPE}
            return TYPES[value[TYPE]](**fields)
        return tuple(rich(item) for item in value) if isinstance(value, list) else value

    arguments = rich(json.loads(text))
    if not isinstance(arguments, tuple):
        raise TypeError(f"no arguments of a kernel: {text[:40]}")
    return arguments


def make(name: str, arguments: tuple[Any, ...], chosen: Mapping[str, int]) -> tirx.PrimFunc:
    """Return the function of a kernel with what was chosen for it.

    Raises:
        KeyError: nothing is to be chosen of this kernel.
        ValueError: what was chosen is not among the choices.
    """
    tunable = TUNABLE[name]
    known = choices(tunable.tiling)
    for field, value in chosen.items():
        if value not in known.get(field, ()):
            raise ValueError(f"{name} has no {field} {value}")
    return tunable.make(*arguments, tiling=tunable.tiling(**chosen))
