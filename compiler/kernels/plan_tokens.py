"""Token merging in the registry: the functions that ``models.token_merging`` stands for in a traced model."""

from __future__ import annotations

from collections.abc import Callable

from tvm import relax, tirx

from compiler.graph import static_shape
from compiler.kernels.plan import Entry, Fused, IsWeight, Plan
from compiler.kernels.register_tile import Machine
from compiler.kernels.tile_matching import tile_matching
from compiler.kernels.token_matching import MatchShape, token_matching
from compiler.kernels.token_merging import merge_tokens, unmerge_tokens

MATCH, MERGE, UNMERGE = ("tvmerge.match_tokens", "tvmerge.merge_tokens", "tvmerge.unmerge_tokens")


def _tensors(call: relax.Call) -> list[relax.Expr]:
    return [field for field in call.args[1].fields if not isinstance(field, relax.ShapeExpr)]


def _accepts(symbol: str) -> Callable[[relax.Call, IsWeight, Machine], bool]:
    return lambda call, _is_weight, _machine: str(call.args[0].global_symbol) == symbol


def _plan_match(name: str, make: Callable[[MatchShape, Machine], tirx.PrimFunc]) -> Callable[..., Plan]:
    def plan(call: relax.Call, _fused: Fused, machine: Machine) -> Plan:
        tokens, settings = call.args[1].fields
        height, width, stride_y, stride_x, merged = (int(value) for value in settings.values)
        batch, count, channels = static_shape(tokens)
        shape = MatchShape(batch, height, width, channels, (stride_y, stride_x), merged)
        return Plan(name, make, (shape, machine), lambda _: [tokens], [batch, count], dtype="int32")

    return plan


def _accepts_tile_match(call: relax.Call, is_weight: IsWeight, machine: Machine) -> bool:
    return machine.unit is not None and _accepts(MATCH)(call, is_weight, machine)


def _plan_merge(call: relax.Call, _fused: Fused, machine: Machine) -> Plan:
    tokens, slots = _tensors(call)
    batch, count, channels = static_shape(tokens)
    left = int(call.ty_args[0].shape[1])
    arguments = (batch, count, channels, count - left, machine)
    return Plan("merge_tokens", merge_tokens, arguments, lambda _: [tokens, slots], [batch, left, channels])


def _plan_unmerge(call: relax.Call, fused: Fused, machine: Machine) -> Plan:
    tokens, slots = _tensors(call)
    (batch, left, channels), count = static_shape(tokens), static_shape(slots)[1]

    def operands(builder: relax.BlockBuilder) -> list[relax.Expr]:
        added = [builder.emit(relax.op.reshape(a.value, [a.rows, channels])) for a in fused.added]
        return [tokens, slots, *added]

    arguments = (batch, count, channels, count - left, tuple(a.rows for a in fused.added), machine)
    return Plan("unmerge_tokens", unmerge_tokens, arguments, operands, [batch * count, channels])


CALL = "relax.call_dps_packed"
TOKENS = (
    Entry(("split_float32",), CALL, _accepts_tile_match, _plan_match("tile_matching", tile_matching)),
    Entry((), CALL, _accepts(MATCH), _plan_match("token_matching", token_matching), lambda _call, _machine: 1.0),
    Entry((), CALL, _accepts(MERGE), _plan_merge),
    Entry((), CALL, _accepts(UNMERGE), _plan_unmerge, adds=True),
)
