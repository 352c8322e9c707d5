"""Attention, softmax and norms in the registry: kernels that work on rows and have no weights to pack."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from tvm import relax, tirx

from compiler.graph import static_shape
from compiler.kernels import tile_attention
from compiler.kernels.flash_attention import AttentionShape, flash_attention
from compiler.kernels.group_norm import GroupNormShape, group_norm
from compiler.kernels.layer_norm import layer_norm
from compiler.kernels.plan import Entry, Fused, IsWeight, Plan, is_float32
from compiler.kernels.register_tile import Machine
from compiler.kernels.softmax import softmax


def _accepts_attention(call: relax.Call, _is_weight: IsWeight, _machine: Machine) -> bool:
    return call.attrs.window_size is None and is_float32(*call.args)


def attention_shape(call: relax.Call) -> AttentionShape:
    """Return the shape of ``nn.attention``."""
    query, key, value = call.args
    batch, queries, heads, size = static_shape(query)
    keys, value_size = static_shape(key)[1], static_shape(value)[-1]
    scale = 1 / math.sqrt(size) if call.attrs.scale is None else float(call.attrs.scale)
    offsets = {"None": None, "TopLeft": 0, "BottomRight": keys - queries}
    return AttentionShape(batch, heads, queries, keys, size, value_size, scale, offsets[str(call.attrs.causal_mask)])


def _plan_attention(call: relax.Call, _fused: Fused, machine: Machine) -> Plan:
    shape = attention_shape(call)
    arguments = (shape, machine.lanes, machine.registers)
    return Plan("flash_attention", flash_attention, arguments, lambda _builder: list(call.args), shape.output)


def _accepts_tile_attention(call: relax.Call, is_weight: IsWeight, machine: Machine) -> bool:
    return _accepts_attention(call, is_weight, machine) and tile_attention.accepts(attention_shape(call), machine)


def _plan_tile_attention(call: relax.Call, _fused: Fused, machine: Machine) -> Plan:
    shape = attention_shape(call)
    return Plan(
        "tile_attention",
        tile_attention.tile_attention,
        (shape, machine),
        lambda _builder: list(call.args),
        shape.output,
    )


def _accepts_softmax(call: relax.Call, _is_weight: IsWeight, _machine: Machine) -> bool:
    rank = len(static_shape(call.args[0]))
    return int(call.attrs.axis) % rank == rank - 1 and is_float32(*call.args)


def _plan_softmax(call: relax.Call, _fused: Fused, machine: Machine) -> Plan:
    *leading, columns = static_shape(call.args[0])
    shape = [math.prod(leading), columns]

    def operands(builder: relax.BlockBuilder) -> list[relax.Expr]:
        return [builder.emit(relax.op.reshape(call.args[0], shape))]

    return Plan("softmax", softmax, (*shape, machine), operands, shape)


def is_channels_last_group_norm(call: relax.Call) -> bool:
    """Tell whether a GroupNorm is over the last axis' groups and all pixels, scaled and shifted."""
    rank = len(static_shape(call.args[0]))
    last = int(call.attrs.channel_axis) % rank == rank - 1
    spatial = [int(axis) % rank for axis in call.attrs.axes] == list(range(1, rank - 1))
    return last and spatial and bool(call.attrs.center and call.attrs.scale)


def group_norm_shape(call: relax.Call) -> GroupNormShape:
    """Return the shape of such a GroupNorm."""
    batch, *spatial, channels = static_shape(call.args[0])
    return GroupNormShape(batch, math.prod(spatial), channels, int(call.attrs.num_groups), float(call.attrs.epsilon))


def _accepts_group_norm(call: relax.Call, _is_weight: IsWeight, _machine: Machine) -> bool:
    return is_channels_last_group_norm(call) and is_float32(*call.args)


def plan_group_norm(call: relax.Call, fused: Fused, machine: Any, make: Callable[..., tirx.PrimFunc]) -> Plan:
    """Plan the GroupNorm that ``make`` makes for a CPU or a GPU."""
    data, gamma, beta = call.args
    shape = group_norm_shape(call)
    flat = [shape.batch, shape.pixels, shape.channels]

    def operands(builder: relax.BlockBuilder) -> list[relax.Expr]:
        values = [builder.emit(relax.op.astype(x, machine.dtype)) for x in (*fused.sources(data), gamma, beta)]
        sources = [relax.op.reshape(x, [*flat[:2], static_shape(x)[-1]]) for x in values[:-2]]
        return [*(builder.emit(source) for source in sources), *values[-2:]]

    arguments = (shape, fused.activation, machine, fused.widths)
    return Plan("group_norm", make, arguments, operands, flat, dtype=machine.dtype)


def is_plain_layer_norm(call: relax.Call) -> bool:
    """Tell whether a LayerNorm is over the last axis, scaled and shifted."""
    axes = [int(axis) % len(static_shape(call.args[0])) for axis in call.attrs.axes]
    return bool(call.attrs.center and call.attrs.scale) and axes == [len(static_shape(call.args[0])) - 1]


def _accepts_layer_norm(call: relax.Call, _is_weight: IsWeight, _machine: Machine) -> bool:
    return is_plain_layer_norm(call) and is_float32(*call.args)


def plan_layer_norm(call: relax.Call, _fused: Fused, machine: Any, make: Callable[..., tirx.PrimFunc]) -> Plan:
    """Plan the LayerNorm that ``make`` makes for a CPU or a GPU."""
    data, gamma, beta = call.args
    *leading, channels = static_shape(data)
    rows = math.prod(leading)

    def operands(builder: relax.BlockBuilder) -> list[relax.Expr]:
        return [builder.emit(relax.op.reshape(data, [rows, channels])), gamma, beta]

    arguments = (rows, channels, float(call.attrs.epsilon), machine)
    return Plan("layer_norm", make, arguments, operands, [rows, channels], dtype=machine.dtype)


ROWS = (
    Entry(("split_float32", "flash_attention"), "relax.nn.attention", _accepts_tile_attention, _plan_tile_attention),
    Entry(
        ("flash_attention",),
        "relax.nn.attention",
        _accepts_attention,
        _plan_attention,
        lambda _call, _machine, _upsample: 1.0,
    ),
    Entry(("fused_softmax",), "relax.nn.softmax", _accepts_softmax, _plan_softmax),
    Entry(
        ("fused_groupnorm",),
        "relax.nn.group_norm",
        _accepts_group_norm,
        functools.partial(plan_group_norm, make=group_norm),
        activations=("silu",),
        fuses="fused_groupnorm",
        joins=lambda _call, widths, machine: all(width % machine.lanes == 0 for width in widths),
    ),
    Entry(
        ("fused_layernorm",),
        "relax.nn.layer_norm",
        _accepts_layer_norm,
        functools.partial(plan_layer_norm, make=layer_norm),
    ),
)
