"""Token merging in the registry: the functions that ``models.token_merging`` stands for in a traced model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from tvm import relax, tirx

from compiler.graph import static_shape
from compiler.kernels.plan import Entry, Fused, IsWeight, Plan
from compiler.kernels.register_tile import Machine
from compiler.kernels.tile_matching import tile_matching
from compiler.kernels.token_matching import MatchShape, token_matching
from compiler.kernels.token_merging import merge_tokens, unmerge_tokens

MATCH, MERGE, UNMERGE = ("tvmerge.match_tokens", "tvmerge.merge_tokens", "tvmerge.unmerge_tokens")


def tensors(call: relax.Call) -> list[relax.Expr]:
    """Return the tensors of such a call, the tokens first."""
    return [field for field in call.args[1].fields if not isinstance(field, relax.ShapeExpr)]


def is_call(call: relax.Call, symbol: str) -> bool:
    """Tell whether a call is of the function ``symbol``."""
    return str(call.args[0].global_symbol) == symbol


def _accepts(symbol: str) -> Callable[[relax.Call, IsWeight, Machine], bool]:
    return lambda call, _is_weight, _machine: is_call(call, symbol)


def plan_match(call: relax.Call, _fused: Fused, machine: Any, name: str, make: Callable[..., tirx.PrimFunc]) -> Plan:
    """Plan the matching that ``make`` makes for a CPU or a GPU."""
    tokens, settings = call.args[1].fields
    height, width, stride_y, stride_x, merged = (int(value) for value in settings.values)
    batch, count, channels = static_shape(tokens)
    shape = MatchShape(batch, height, width, channels, (stride_y, stride_x), merged)
    return Plan(name, make, (shape, machine), lambda _: [tokens], [batch, count], dtype="int32")


def _accepts_tile_match(call: relax.Call, _is_weight: IsWeight, machine: Machine) -> bool:
    return machine.unit is not None and is_call(call, MATCH)


def plan_merge(call: relax.Call, _fused: Fused, machine: Any, make: Callable[..., tirx.PrimFunc]) -> Plan:
    """Plan the mean by slot that ``make`` makes for a CPU or a GPU."""
    tokens, slots = tensors(call)
    batch, count, channels = static_shape(tokens)
    left = int(call.ty_args[0].shape[1])
    arguments = (batch, count, channels, count - left, machine)
    output = [batch, left, channels]
    return Plan("merge_tokens", make, arguments, lambda _: [tokens, slots], output, dtype=machine.dtype)


def plan_unmerge(call: relax.Call, fused: Fused, machine: Any, make: Callable[..., tirx.PrimFunc]) -> Plan:
    """Plan the parting of tokens that ``make`` makes for a CPU or a GPU."""
    tokens, slots = tensors(call)
    (batch, left, channels), count = static_shape(tokens), static_shape(slots)[1]

    def operands(builder: relax.BlockBuilder) -> list[relax.Expr]:
        added = [builder.emit(relax.op.reshape(a.value, [a.rows, channels])) for a in fused.added]
        return [tokens, slots, *added]

    arguments = (batch, count, channels, count - left, tuple(a.rows for a in fused.added), machine)
    return Plan("unmerge_tokens", make, arguments, operands, [batch * count, channels], dtype=machine.dtype)


CALL = "relax.call_dps_packed"
TOKENS = (
    Entry(
        ("split_float32",),
        CALL,
        _accepts_tile_match,
        functools.partial(plan_match, name="tile_matching", make=tile_matching),
    ),
    Entry(
        (),
        CALL,
        _accepts(MATCH),
        functools.partial(plan_match, name="token_matching", make=token_matching),
        lambda _call, _machine, _upsample: 1.0,
    ),
    Entry((), CALL, _accepts(MERGE), functools.partial(plan_merge, make=merge_tokens)),
    Entry((), CALL, _accepts(UNMERGE), functools.partial(plan_unmerge, make=unmerge_tokens), adds=True),
)
