"""The GPU's kernels in the registry: which operators they take, and how their weights are packed."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

from tvm import relax

from compiler.gpu import attention
from compiler.gpu.group_norm import group_norm
from compiler.gpu.layer_norm import layer_norm
from compiler.gpu.machine import Gpu
from compiler.gpu.multiply import multiply
from compiler.gpu.threads import CHUNK
from compiler.gpu.token_matching import token_matching
from compiler.gpu.token_merging import merge_tokens, unmerge_tokens
from compiler.graph import static_shape
from compiler.kernels.conv2d import ConvShape
from compiler.kernels.epilogue import GEGLU
from compiler.kernels.flash_attention import AttentionShape
from compiler.kernels.plan import Entry, Fused, IsWeight, Plan
from compiler.kernels.plan_multiplies import conv_shape, matmul_shape, plain_conv2d
from compiler.kernels.plan_rows import (
    attention_shape,
    is_channels_last_group_norm,
    is_plain_layer_norm,
    plan_group_norm,
    plan_layer_norm,
)
from compiler.kernels.plan_tokens import (
    CALL,
    MATCH,
    MERGE,
    UNMERGE,
    is_call,
    plan_match,
    plan_merge,
    plan_unmerge,
    tensors,
)


def _is_narrow(gpu: Gpu, *values: relax.Expr) -> bool:
    return gpu.is_narrow and all(value.ty.dtype == gpu.dtype for value in values)


def _weights(builder: relax.BlockBuilder, weight: relax.Expr, gated: bool) -> relax.Expr:
    """Pack a weight [..., outputs] as [outputs, depth]; gated ones alternate 8 values and 8 gates."""
    *leading, outputs = static_shape(weight)
    depth = math.prod(leading)
    matrix = builder.emit(relax.op.permute_dims(builder.emit(relax.op.reshape(weight, [depth, outputs])), [1, 0]))
    if not gated:
        return matrix
    halves = builder.emit(relax.op.reshape(matrix, [2, outputs // 16, 8, depth]))
    turned = builder.emit(relax.op.permute_dims(halves, [1, 0, 2, 3]))
    return builder.emit(relax.op.reshape(turned, [outputs, depth]))


def _with_channels(builder: relax.BlockBuilder, value: relax.Expr, axis: int, count: int) -> relax.Expr:
    """Append zeros along ``axis`` up to ``count``."""
    shape = static_shape(value)
    missing = count - shape[axis]
    if not missing:
        return value
    widths = [0, 0] * len(shape)
    widths[2 * axis + 1] = missing
    return builder.emit(relax.op.nn.pad(value, widths))


def _plan_product(call: relax.Call, exact: ConvShape, fused: Fused, gpu: Gpu) -> Plan:
    data, weight = call.args
    shape = dataclasses.replace(exact, inputs=-(-exact.inputs // CHUNK) * CHUNK)
    gated = fused.activation == GEGLU
    picture = [shape.batch, shape.height // shape.upsample, shape.width // shape.upsample]

    def operands(builder: relax.BlockBuilder) -> list[relax.Expr]:
        sources = [builder.emit(relax.op.reshape(x, [*picture, static_shape(x)[-1]])) for x in fused.sources(data)]
        if shape != exact:
            sources = [_with_channels(builder, sources[0], 3, shape.inputs)]
        full = _with_channels(builder, weight, len(static_shape(weight)) - 2, shape.inputs)
        added = [relax.op.reshape(a.value, [a.rows, shape.outputs]) for a in fused.added]
        return [
            *sources,
            _weights(builder, full, gated),
            *(builder.emit(value) for value in added),
        ]

    rows = tuple(a.rows for a in fused.added)
    arguments = (shape, rows, gpu, fused.activation, fused.results, fused.widths)
    result = [shape.pixels, shape.outputs // (2 if gated else fused.results)]
    return Plan("tensor_multiply", multiply, arguments, operands, result, fused.results, gpu.dtype)


def _accepts_matmul(call: relax.Call, _is_weight: IsWeight, gpu: Gpu) -> bool:
    """Take any matrix; one that is no weight is packed on the way."""
    *others, _, _ = static_shape(call.args[1])
    return math.prod(others) == 1 and _is_narrow(gpu, *call.args)


def _accepts_conv2d(call: relax.Call, is_weight: IsWeight, gpu: Gpu) -> bool:
    return plain_conv2d(call, is_weight) and _is_narrow(gpu, *call.args)


def _joins(_call: relax.Call, widths: Sequence[int], _gpu: Gpu) -> bool:
    return all(width % CHUNK == 0 for width in widths)


def _plan_matmul(call: relax.Call, fused: Fused, gpu: Gpu) -> Plan:
    return _plan_product(call, matmul_shape(call), fused, gpu)


def _plan_conv2d(call: relax.Call, fused: Fused, gpu: Gpu) -> Plan:
    return _plan_product(call, conv_shape(call, fused.upsample), fused, gpu)


def _accepts_attention(call: relax.Call, _is_weight: IsWeight, gpu: Gpu) -> bool:
    plain = call.attrs.window_size is None and len(call.args) == 3 and _is_narrow(gpu, *call.args)
    return plain and attention.accepts(attention_shape(call))


def _plan_attention(call: relax.Call, _fused: Fused, gpu: Gpu) -> Plan:
    shape: AttentionShape = attention_shape(call)
    operands = list(call.args)
    return Plan(
        "tensor_attention", attention.attention, (shape, gpu), lambda _: operands, shape.output, dtype=gpu.dtype
    )


def _accepts_group_norm(call: relax.Call, _is_weight: IsWeight, gpu: Gpu) -> bool:
    return is_channels_last_group_norm(call) and gpu.is_narrow


def _accepts_layer_norm(call: relax.Call, _is_weight: IsWeight, gpu: Gpu) -> bool:
    return is_plain_layer_norm(call) and _is_narrow(gpu, *call.args)


def _accepts_tokens(symbol: str, call: relax.Call, _is_weight: IsWeight, gpu: Gpu) -> bool:
    return is_call(call, symbol) and _is_narrow(gpu, tensors(call)[0])


def _accepts_match(call: relax.Call, is_weight: IsWeight, gpu: Gpu) -> bool:
    return _accepts_tokens(MATCH, call, is_weight, gpu) and static_shape(tensors(call)[0])[-1] % CHUNK == 0


TENSOR_CORES = (
    Entry(
        ("packed_weights",),
        "relax.matmul",
        _accepts_matmul,
        _plan_matmul,
        adds=True,
        splits=True,
        activations=("silu", "gelu", "quick_gelu", GEGLU),
        fuses="fused_gelu",
        joins=_joins,
    ),
    Entry(
        ("packed_weights",),
        "relax.nn.conv2d",
        _accepts_conv2d,
        _plan_conv2d,
        adds=True,
        upsamples=lambda _call, _factor, _machine: True,
        joins=_joins,
    ),
    Entry(("flash_attention",), "relax.nn.attention", _accepts_attention, _plan_attention),
    Entry(
        ("fused_groupnorm",),
        "relax.nn.group_norm",
        _accepts_group_norm,
        functools.partial(plan_group_norm, make=group_norm),
        activations=("silu",),
        fuses="fused_groupnorm",
        joins=lambda _call, _widths, _gpu: True,
    ),
    Entry(
        ("fused_layernorm",),
        "relax.nn.layer_norm",
        _accepts_layer_norm,
        functools.partial(plan_layer_norm, make=layer_norm),
    ),
    Entry((), CALL, _accepts_match, functools.partial(plan_match, name="tensor_matching", make=token_matching)),
    Entry((), CALL, functools.partial(_accepts_tokens, MERGE), functools.partial(plan_merge, make=merge_tokens)),
    Entry(
        (),
        CALL,
        functools.partial(_accepts_tokens, UNMERGE),
        functools.partial(plan_unmerge, make=unmerge_tokens),
        adds=True,
    ),
)
