"""Multiplies and convolutions in the registry: which of them each kernel takes, and how their weights are packed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import relax, tirx

from compiler.graph import static_shape
from compiler.kernels import narrow_conv2d, tile_conv2d, tile_winograd, winograd
from compiler.kernels.conv2d import ConvShape, conv2d
from compiler.kernels.epilogue import GEGLU
from compiler.kernels.matmul import matmul
from compiler.kernels.plan import KERNEL, Added, Entry, Fused, IsWeight, Plan, is_float32
from compiler.kernels.register_tile import Machine
from compiler.kernels.split import BLOCK, WORDS
from compiler.kernels.tile_winograd import POINTS, transform_panels
from compiler.kernels.upsampled import PHASES, add_taps, has_phases

GUIDED = 2  # pictures of a call with guidance, where one is drawn


def _panels(builder: relax.BlockBuilder, weight: relax.Expr, rows: int, columns: int, panel: int) -> relax.Expr:
    """Pack a weight matrix [rows, columns] as [panels, rows, panel], padded with zeros. Linear in the weight."""
    count = -(-columns // panel)
    weight = relax.op.reshape(weight, [rows, columns])
    if count * panel != columns:
        weight = relax.op.nn.pad(weight, [0, 0, 0, count * panel - columns])
    weight = builder.emit(relax.op.reshape(builder.emit(weight), [rows, count, panel]))
    return builder.emit(relax.op.permute_dims(weight, [1, 0, 2]))


def _gated_panels(builder: relax.BlockBuilder, weight: relax.Expr, rows: int, columns: int, lanes: int) -> relax.Expr:
    """Pack [rows, values and gates] as [panels, rows, a vector of values and one of gates]. Linear in the weight."""
    count = columns // 2 // lanes
    weight = builder.emit(relax.op.reshape(weight, [rows, 2, count, lanes]))
    weight = builder.emit(relax.op.permute_dims(weight, [2, 0, 1, 3]))
    return builder.emit(relax.op.reshape(weight, [count, rows, 2 * lanes]))


def _matrices(builder: relax.BlockBuilder, added: Sequence[Added], channels: int) -> list[relax.Expr]:
    return [builder.emit(relax.op.reshape(a.value, [a.rows, channels])) for a in added]


def _plan_multiply(data: relax.Expr, weight: relax.Expr, output: list[int], fused: Fused, machine: Machine) -> Plan:
    rows, inputs, outputs = math.prod(output[:-1]), static_shape(data)[-1], output[-1]
    gated = fused.activation == GEGLU

    def operands(builder: relax.BlockBuilder) -> list[relax.Expr]:
        pack, width = (_gated_panels, machine.lanes) if gated else (_panels, machine.panel)
        sources = [relax.op.reshape(x, [rows, static_shape(x)[-1]]) for x in fused.sources(data)]
        return [
            *(builder.emit(source) for source in sources),
            pack(builder, weight, inputs, outputs, width),
            *_matrices(builder, fused.added, outputs),
        ]

    shape, added = (rows, inputs, outputs), tuple(a.rows for a in fused.added)
    arguments = (*shape, added, machine, fused.activation, fused.results, fused.widths)
    result = [rows, outputs // (2 if gated else fused.results)]
    return Plan("matmul", matmul, arguments, operands, result, fused.results)


def matmul_shape(call: relax.Call) -> ConvShape:
    """Return a multiply as the convolution of a picture one pixel wide."""
    data, weight = call.args
    *leading, inputs = static_shape(data)
    return ConvShape(1, math.prod(leading), 1, inputs, static_shape(weight)[-1], (1, 1), (1, 1), (0, 0, 0, 0))


def _accepts_tile_matmul(call: relax.Call, is_weight: IsWeight, machine: Machine) -> bool:
    return _accepts_matmul(call, is_weight, machine) and tile_conv2d.accepts(matmul_shape(call), machine)


def _plan_tile_matmul(call: relax.Call, fused: Fused, machine: Machine) -> Plan:
    return _tiled("tile_matmul", _plan_matmul(call, fused, machine), matmul_shape(call), fused, machine)


def _pack(
    builder: relax.BlockBuilder, name: str, function: tirx.PrimFunc, weight: relax.Expr, result: relax.TensorType
) -> relax.Var:
    """Have a kernel pack a weight."""
    kernel = builder.add_func(function.with_attr(KERNEL, name), name)
    return builder.emit(relax.call_tir(kernel, [weight], result))


def _tiled(name: str, plan: Plan, shape: ConvShape, fused: Fused, machine: Machine) -> Plan:
    """Return ``plan`` with the kernel in tile registers.

    It takes words that are made of the same panels, and of a doubled picture those of its phases.
    """

    def operands(builder: relax.BlockBuilder) -> list[relax.Expr]:
        found = plan.operands(builder)
        data, (weight, *added) = found[: len(fused.joined) or 1], found[len(fused.joined) or 1 :]
        size = [shape.batch, shape.height // shape.upsample, shape.width // shape.upsample]
        data = [builder.emit(relax.op.reshape(x, [*size, static_shape(x)[-1]])) for x in data]
        panels, rows, panel = static_shape(weight)
        if name == "tile_winograd":
            function, rows, made = transform_panels(panels, shape.inputs, machine), shape.inputs, POINTS * panels
            weight = _pack(
                builder, "transform_panels", function, weight, relax.TensorType([made, rows, panel], "float32")
            )
            panels = made
        elif has_phases(shape):
            function, rows, made = add_taps(panels, shape.inputs, machine), 4 * shape.inputs, PHASES**2 * panels
            weight = _pack(builder, "add_taps", function, weight, relax.TensorType([made, rows, panel], "float32"))
            panels = made
        words = relax.TensorType([panels, rows // BLOCK, machine.parts, 2, WORDS, WORDS], "uint32")
        packed = _pack(builder, "pack_words", tile_conv2d.pack_words(panels, rows, machine), weight, words)
        return [*data, packed, *added]

    added = tuple(a.rows for a in fused.added)
    if name == "tile_winograd":
        return Plan(name, tile_winograd.tile_winograd, (shape, added, machine, fused.widths), operands, plan.output)
    arguments = (shape, added, machine, fused.activation, fused.results, fused.widths)
    return Plan(name, tile_conv2d.tile_conv2d, arguments, operands, plan.output, fused.results)


def _accepts_matmul(call: relax.Call, is_weight: IsWeight, _machine: Machine) -> bool:
    data, weight = call.args
    return is_weight(weight) and len(static_shape(weight)) == 2 and is_float32(data, weight)


def _plan_matmul(call: relax.Call, fused: Fused, machine: Machine) -> Plan:
    data, weight = call.args
    output = [*static_shape(data)[:-1], static_shape(weight)[-1]]
    return _plan_multiply(data, weight, output, fused, machine)


def plain_conv2d(call: relax.Call, is_weight: IsWeight) -> bool:
    """Tell whether a convolution is channels-last, of known weights, neither grouped nor dilated."""
    attrs = call.attrs
    plain = int(attrs.groups) == 1 and all(int(d) == 1 for d in attrs.dilation)
    layouts = (str(attrs.data_layout), str(attrs.kernel_layout), str(attrs.out_layout))
    return plain and layouts == ("NHWC", "HWIO", "NHWC") and is_weight(call.args[1])


def _accepts_conv2d(call: relax.Call, is_weight: IsWeight, _machine: Machine) -> bool:
    return plain_conv2d(call, is_weight) and is_float32(*call.args)


def conv_shape(call: relax.Call, upsample: int = 1) -> ConvShape:
    """Return the shape of a convolution whose input is upsampled by ``upsample`` on the way."""
    batch, height, width, inputs = static_shape(call.args[0])
    height, width = height * upsample, width * upsample
    kh, kw, _, outputs = static_shape(call.args[1])
    stride, padding = (tuple(int(x) for x in values) for values in (call.attrs.strides, call.attrs.padding))
    return ConvShape(batch, height, width, inputs, outputs, (kh, kw), stride, padding, upsample)


def _plan_conv2d(call: relax.Call, fused: Fused, machine: Machine) -> Plan:
    shape = conv_shape(call, fused.upsample)
    if shape.is_multiply:
        output = [shape.batch, *shape.result, shape.outputs]
        return _plan_multiply(call.args[0], call.args[1], output, fused, machine)
    arguments = (shape, tuple(a.rows for a in fused.added), machine)
    return Plan("conv2d", conv2d, arguments, _conv_operands(call, fused, machine), [shape.pixels, shape.outputs])


def _conv_operands(
    call: relax.Call, fused: Fused, machine: Machine
) -> Callable[[relax.BlockBuilder], list[relax.Expr]]:
    """Pack in the same way for every algorithm of vectors, so that two functions of a component share the weight."""
    data, weight = call.args
    kh, kw, inputs, outputs = static_shape(weight)

    def operands(builder: relax.BlockBuilder) -> list[relax.Expr]:
        panels = _panels(builder, weight, kh * kw * inputs, outputs, machine.panel)
        return [*fused.sources(data), panels, *_matrices(builder, fused.added, outputs)]

    return operands


def _accepts_narrow_conv2d(call: relax.Call, is_weight: IsWeight, machine: Machine) -> bool:
    return _accepts_conv2d(call, is_weight, machine) and narrow_conv2d.accepts(conv_shape(call), machine)


def _plan_narrow_conv2d(call: relax.Call, fused: Fused, machine: Machine) -> Plan:
    shape = conv_shape(call)
    data, weight = call.args

    def operands(builder: relax.BlockBuilder) -> list[relax.Expr]:
        taps = builder.emit(relax.op.reshape(weight, [math.prod(shape.kernel), shape.inputs, shape.outputs]))
        rows = builder.emit(relax.op.permute_dims(taps, [2, 0, 1]))
        return [data, rows, *_matrices(builder, fused.added, shape.outputs)]

    arguments = (shape, tuple(a.rows for a in fused.added), machine)
    return Plan("narrow_conv2d", narrow_conv2d.narrow_conv2d, arguments, operands, [shape.pixels, shape.outputs])


def _accepts_tile_conv2d(call: relax.Call, is_weight: IsWeight, machine: Machine) -> bool:
    return _accepts_conv2d(call, is_weight, machine) and tile_conv2d.accepts(conv_shape(call), machine)


def _plan_tile_conv2d(call: relax.Call, fused: Fused, machine: Machine) -> Plan:
    shape = conv_shape(call, fused.upsample)
    return _tiled("tile_conv2d", _plan_conv2d(call, fused, machine), shape, fused, machine)


def _accepts_tile_winograd(call: relax.Call, is_weight: IsWeight, machine: Machine) -> bool:
    return _accepts_conv2d(call, is_weight, machine) and tile_winograd.accepts(conv_shape(call), machine)


def _plan_tile_winograd(call: relax.Call, fused: Fused, machine: Machine) -> Plan:
    return _tiled("tile_winograd", _plan_conv2d(call, fused, machine), conv_shape(call), fused, machine)


def _accepts_winograd(call: relax.Call, is_weight: IsWeight, machine: Machine) -> bool:
    return _accepts_conv2d(call, is_weight, machine) and winograd.accepts(conv_shape(call), machine)


def _plan_winograd(call: relax.Call, fused: Fused, machine: Machine) -> Plan:
    shape = conv_shape(call, fused.upsample)
    tile, _ = winograd.cheapest_tile(shape, machine)
    arguments = (shape, tuple(a.rows for a in fused.added), machine, tile)
    operands = _conv_operands(call, fused, machine)
    return Plan(f"winograd_{tile}", winograd.winograd, arguments, operands, [shape.pixels, shape.outputs])


def _joins_blocks(_call: relax.Call, widths: Sequence[int], _machine: Machine) -> bool:
    return all(width % BLOCK == 0 for width in widths)


def _read(call: relax.Call, machine: Machine, upsample: int) -> ConvShape:
    """Return the shape that decides on a convolution whose data, as it is now, is upsampled and read on the way.

    Weights of one part are packed in another way than those of float32. With and without guidance the same kernel is
    taken then, or both would be stored.
    """
    shape = dataclasses.replace(conv_shape(call), upsample=upsample)
    return dataclasses.replace(shape, batch=GUIDED) if machine.unit is not None and machine.parts == 1 else shape


def _multiplies(call: relax.Call, _machine: Machine, _upsample: int) -> float:
    return (matmul_shape if call.op.name == "relax.matmul" else conv_shape)(call).multiplies


TAIL: dict[str, Any] = {
    "adds": True,
    "splits": True,
    "activations": ("silu", "gelu", "quick_gelu", GEGLU),
    "fuses": "fused_gelu",
}
MULTIPLIES = (
    Entry(
        ("split_float32", "packed_weights"),
        "relax.matmul",
        _accepts_tile_matmul,
        _plan_tile_matmul,
        lambda call, machine, _upsample: tile_conv2d.cost(matmul_shape(call), machine),
        **TAIL,
    ),
    Entry(("packed_weights",), "relax.matmul", _accepts_matmul, _plan_matmul, _multiplies, **TAIL),
    Entry(
        ("split_float32", "packed_weights"),
        "relax.nn.conv2d",
        _accepts_tile_conv2d,
        _plan_tile_conv2d,
        lambda call, machine, upsample: tile_conv2d.cost(_read(call, machine, upsample), machine),
        adds=True,
        upsamples=lambda _call, _factor, _machine: True,
        joins=_joins_blocks,
    ),
    Entry(
        ("split_float32", "winograd"),
        "relax.nn.conv2d",
        _accepts_tile_winograd,
        _plan_tile_winograd,
        lambda call, machine, _upsample: tile_winograd.cost(conv_shape(call), machine),
        adds=True,
        joins=_joins_blocks,
    ),
    Entry(
        ("winograd",),
        "relax.nn.conv2d",
        _accepts_winograd,
        _plan_winograd,
        lambda call, machine, upsample: winograd.cheapest_tile(_read(call, machine, upsample), machine)[1],
        adds=True,
        upsamples=lambda call, factor, machine: winograd.upsamples(conv_shape(call), factor, machine),
    ),
    Entry(
        ("packed_weights",),
        "relax.nn.conv2d",
        _accepts_narrow_conv2d,
        _plan_narrow_conv2d,
        lambda call, _machine, _upsample: narrow_conv2d.COST * conv_shape(call).multiplies,
        adds=True,
    ),
    Entry(
        ("packed_weights",),
        "relax.nn.conv2d",
        _accepts_conv2d,
        _plan_conv2d,
        _multiplies,
        adds=True,
        joins=lambda call, _widths, _machine: conv_shape(call).is_multiply,
    ),
)
