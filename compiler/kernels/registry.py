"""Which operator and shape each kernel takes, how its weights are packed, and how it is called."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax, tirx

from compiler.graph import static_shape
from compiler.kernels import tile_attention, tile_conv2d, winograd
from compiler.kernels.conv2d import ConvShape, conv2d
from compiler.kernels.epilogue import GEGLU
from compiler.kernels.flash_attention import AttentionShape, flash_attention
from compiler.kernels.group_norm import GroupNormShape, group_norm
from compiler.kernels.layer_norm import layer_norm
from compiler.kernels.matmul import matmul
from compiler.kernels.register_tile import Machine
from compiler.kernels.softmax import softmax
from compiler.kernels.split import BLOCK, WORDS

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

    ``output`` is the shape of each of its ``results``.
    """

    name: str
    make: Callable[..., tirx.PrimFunc]
    arguments: tuple[Any, ...]
    operands: Callable[[relax.BlockBuilder], list[relax.Expr]]
    output: list[int]
    results: int = 1


@dataclass(frozen=True)
class Fused:
    """What a kernel does besides its operator.

    Nearest upsampling before it, then additions in order, an activation, and even shares of the columns as results of
    their own.
    """

    added: Sequence[Added] = ()
    activation: str | None = None
    upsample: int = 1
    results: int = 1


@dataclass(frozen=True)
class Entry:
    """A kernel in the registry, used while all of ``optimisations`` are on.

    ``accepts`` looks at a call and at the machine, ``plan`` makes the kernel's call, and where several kernels take an
    operator, ``cost`` estimates their time in multiply-adds of vector registers. ``adds``, ``activations``,
    ``upsamples`` and ``splits`` tell what the kernel can do besides; activations only where the optimisation ``fuses``
    is on.
    """

    optimisations: tuple[str, ...]
    operator: str
    accepts: Callable[[relax.Call, IsWeight, Machine], bool]
    plan: Callable[[relax.Call, Fused, Machine], Plan]
    cost: Callable[[relax.Call, Machine], float] = lambda _call, _machine: 0.0
    adds: bool = False
    activations: tuple[str, ...] = ()
    upsamples: bool = False
    splits: bool = False
    fuses: str = ""


def _is_float32(*values: relax.Expr) -> bool:
    return all(value.ty.dtype == "float32" for value in values)


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
        return [
            builder.emit(relax.op.reshape(data, [rows, inputs])),
            pack(builder, weight, inputs, outputs, width),
            *_matrices(builder, fused.added, outputs),
        ]

    arguments = (rows, inputs, outputs, tuple(a.rows for a in fused.added), machine, fused.activation, fused.results)
    result = [rows, outputs // (2 if gated else fused.results)]
    return Plan("matmul", matmul, arguments, operands, result, fused.results)


def _matmul_shape(call: relax.Call) -> ConvShape:
    """Return a multiply as the convolution of a picture one pixel wide."""
    data, weight = call.args
    *leading, inputs = static_shape(data)
    return ConvShape(1, math.prod(leading), 1, inputs, static_shape(weight)[-1], (1, 1), (1, 1), (0, 0, 0, 0))


def _accepts_tile_matmul(call: relax.Call, is_weight: IsWeight, machine: Machine) -> bool:
    return _accepts_matmul(call, is_weight, machine) and tile_conv2d.accepts(_matmul_shape(call), machine)


def _plan_tile_matmul(call: relax.Call, fused: Fused, machine: Machine) -> Plan:
    return _tiled("tile_matmul", _plan_matmul(call, fused, machine), _matmul_shape(call), fused, machine)


def _tiled(name: str, plan: Plan, shape: ConvShape, fused: Fused, machine: Machine) -> Plan:
    """Return ``plan`` with the kernel in tile registers.

    It takes the same panels, and where one part is enough, words that are made of them: half the bytes.
    """

    def operands(builder: relax.BlockBuilder) -> list[relax.Expr]:
        data, weight, *added = plan.operands(builder)
        size = [shape.height // shape.upsample, shape.width // shape.upsample]
        data = builder.emit(relax.op.reshape(data, [shape.batch, *size, shape.inputs]))
        if machine.parts == 1:
            panels, rows, _ = static_shape(weight)
            function = tile_conv2d.pack_words(panels, rows, machine).with_attr(KERNEL, "pack_words")
            pack = builder.add_func(function, "pack_words")
            words = relax.TensorType([panels, rows // BLOCK, 2, WORDS, WORDS], "uint32")
            weight = builder.emit(relax.call_tir(pack, [weight], words))
        return [data, weight, *added]

    arguments = (shape, tuple(a.rows for a in fused.added), machine, fused.activation, fused.results)
    return Plan(name, tile_conv2d.tile_conv2d, arguments, operands, plan.output, fused.results)


def _accepts_matmul(call: relax.Call, is_weight: IsWeight, _machine: Machine) -> bool:
    data, weight = call.args
    return is_weight(weight) and len(static_shape(weight)) == 2 and _is_float32(data, weight)


def _plan_matmul(call: relax.Call, fused: Fused, machine: Machine) -> Plan:
    data, weight = call.args
    output = [*static_shape(data)[:-1], static_shape(weight)[-1]]
    return _plan_multiply(data, weight, output, fused, machine)


def _accepts_conv2d(call: relax.Call, is_weight: IsWeight, _machine: Machine) -> bool:
    attrs = call.attrs
    plain = int(attrs.groups) == 1 and all(int(d) == 1 for d in attrs.dilation)
    layouts = (str(attrs.data_layout), str(attrs.kernel_layout), str(attrs.out_layout))
    return plain and layouts == ("NHWC", "HWIO", "NHWC") and is_weight(call.args[1]) and _is_float32(*call.args)


def _conv_shape(call: relax.Call, upsample: int = 1) -> ConvShape:
    batch, height, width, inputs = static_shape(call.args[0])
    height, width = height * upsample, width * upsample
    kh, kw, _, outputs = static_shape(call.args[1])
    stride, padding = (tuple(int(x) for x in values) for values in (call.attrs.strides, call.attrs.padding))
    return ConvShape(batch, height, width, inputs, outputs, (kh, kw), stride, padding, upsample)


def _plan_conv2d(call: relax.Call, fused: Fused, machine: Machine) -> Plan:
    shape = _conv_shape(call, fused.upsample)
    if shape.kernel == (1, 1) and shape.stride == (1, 1) and not any(shape.padding):
        output = [shape.batch, *shape.result, shape.outputs]
        return _plan_multiply(call.args[0], call.args[1], output, fused, machine)
    arguments = (shape, tuple(a.rows for a in fused.added), machine)
    return Plan("conv2d", conv2d, arguments, _conv_operands(call, fused, machine), [shape.pixels, shape.outputs])


def _conv_operands(
    call: relax.Call, fused: Fused, machine: Machine
) -> Callable[[relax.BlockBuilder], list[relax.Expr]]:
    """Pack in the same way for every algorithm, so that two functions of a component share the weight."""
    data, weight = call.args
    kh, kw, inputs, outputs = static_shape(weight)

    def operands(builder: relax.BlockBuilder) -> list[relax.Expr]:
        panels = _panels(builder, weight, kh * kw * inputs, outputs, machine.panel)
        return [data, panels, *_matrices(builder, fused.added, outputs)]

    return operands


def _accepts_tile_conv2d(call: relax.Call, is_weight: IsWeight, machine: Machine) -> bool:
    return _accepts_conv2d(call, is_weight, machine) and tile_conv2d.accepts(_conv_shape(call), machine)


def _plan_tile_conv2d(call: relax.Call, fused: Fused, machine: Machine) -> Plan:
    shape = _conv_shape(call, fused.upsample)
    return _tiled("tile_conv2d", _plan_conv2d(call, fused, machine), shape, fused, machine)


def _accepts_winograd(call: relax.Call, is_weight: IsWeight, machine: Machine) -> bool:
    return _accepts_conv2d(call, is_weight, machine) and winograd.accepts(_conv_shape(call), machine)


def _plan_winograd(call: relax.Call, fused: Fused, machine: Machine) -> Plan:
    shape = _conv_shape(call)
    tile, _ = winograd.cheapest_tile(shape, machine)
    arguments = (shape, tuple(a.rows for a in fused.added), machine, tile)
    operands = _conv_operands(call, fused, machine)
    return Plan(f"winograd_{tile}", winograd.winograd, arguments, operands, [shape.pixels, shape.outputs])


def _accepts_attention(call: relax.Call, _is_weight: IsWeight, _machine: Machine) -> bool:
    return call.attrs.window_size is None and _is_float32(*call.args)


def _attention_shape(call: relax.Call) -> AttentionShape:
    query, key, value = call.args
    batch, queries, heads, size = static_shape(query)
    keys, value_size = static_shape(key)[1], static_shape(value)[-1]
    scale = 1 / math.sqrt(size) if call.attrs.scale is None else float(call.attrs.scale)
    offsets = {"None": None, "TopLeft": 0, "BottomRight": keys - queries}
    return AttentionShape(batch, heads, queries, keys, size, value_size, scale, offsets[str(call.attrs.causal_mask)])


def _plan_attention(call: relax.Call, _fused: Fused, machine: Machine) -> Plan:
    shape = _attention_shape(call)
    arguments = (shape, machine.lanes, machine.registers)
    return Plan("flash_attention", flash_attention, arguments, lambda _builder: list(call.args), shape.output)


def _accepts_tile_attention(call: relax.Call, is_weight: IsWeight, machine: Machine) -> bool:
    return _accepts_attention(call, is_weight, machine) and tile_attention.accepts(_attention_shape(call), machine)


def _plan_tile_attention(call: relax.Call, _fused: Fused, machine: Machine) -> Plan:
    shape = _attention_shape(call)
    return Plan(
        "tile_attention",
        tile_attention.tile_attention,
        (shape, machine),
        lambda _builder: list(call.args),
        shape.output,
    )


def _accepts_softmax(call: relax.Call, _is_weight: IsWeight, _machine: Machine) -> bool:
    rank = len(static_shape(call.args[0]))
    return int(call.attrs.axis) % rank == rank - 1 and _is_float32(*call.args)


def _plan_softmax(call: relax.Call, _fused: Fused, machine: Machine) -> Plan:
    *leading, columns = static_shape(call.args[0])
    shape = [math.prod(leading), columns]

    def operands(builder: relax.BlockBuilder) -> list[relax.Expr]:
        return [builder.emit(relax.op.reshape(call.args[0], shape))]

    return Plan("softmax", softmax, (*shape, machine), operands, shape)


def _accepts_group_norm(call: relax.Call, _is_weight: IsWeight, _machine: Machine) -> bool:
    rank = len(static_shape(call.args[0]))
    last = int(call.attrs.channel_axis) % rank == rank - 1
    spatial = [int(axis) % rank for axis in call.attrs.axes] == list(range(1, rank - 1))
    return last and spatial and bool(call.attrs.center and call.attrs.scale) and _is_float32(*call.args)


def _plan_group_norm(call: relax.Call, fused: Fused, machine: Machine) -> Plan:
    data, gamma, beta = call.args
    batch, *spatial, channels = static_shape(data)
    pixels = math.prod(spatial)
    flat = [batch, pixels, channels]
    shape = GroupNormShape(batch, pixels, channels, int(call.attrs.num_groups), float(call.attrs.epsilon))

    def operands(builder: relax.BlockBuilder) -> list[relax.Expr]:
        return [builder.emit(relax.op.reshape(data, flat)), gamma, beta]

    return Plan("group_norm", group_norm, (shape, fused.activation, machine), operands, flat)


def _accepts_layer_norm(call: relax.Call, _is_weight: IsWeight, _machine: Machine) -> bool:
    axes = [int(axis) % len(static_shape(call.args[0])) for axis in call.attrs.axes]
    plain = bool(call.attrs.center and call.attrs.scale) and _is_float32(*call.args)
    return plain and axes == [len(static_shape(call.args[0])) - 1]


def _plan_layer_norm(call: relax.Call, _fused: Fused, machine: Machine) -> Plan:
    data, gamma, beta = call.args
    *leading, channels = static_shape(data)
    rows = math.prod(leading)

    def operands(builder: relax.BlockBuilder) -> list[relax.Expr]:
        return [builder.emit(relax.op.reshape(data, [rows, channels])), gamma, beta]

    arguments = (rows, channels, float(call.attrs.epsilon), machine)
    return Plan("layer_norm", layer_norm, arguments, operands, [rows, channels])


def _multiplies(call: relax.Call, _machine: Machine) -> float:
    return (_matmul_shape if call.op.name == "relax.matmul" else _conv_shape)(call).multiplies


TAIL: dict[str, Any] = {"adds": True, "splits": True, "activations": ("silu", "gelu", GEGLU), "fuses": "fused_gelu"}
REGISTRY = (
    Entry(
        ("split_float32", "packed_weights"),
        "relax.matmul",
        _accepts_tile_matmul,
        _plan_tile_matmul,
        lambda call, machine: tile_conv2d.cost(_matmul_shape(call), machine),
        **TAIL,
    ),
    Entry(("packed_weights",), "relax.matmul", _accepts_matmul, _plan_matmul, _multiplies, **TAIL),
    Entry(
        ("split_float32", "packed_weights"),
        "relax.nn.conv2d",
        _accepts_tile_conv2d,
        _plan_tile_conv2d,
        lambda call, machine: tile_conv2d.cost(_conv_shape(call), machine),
        adds=True,
        upsamples=True,
    ),
    Entry(
        ("winograd",),
        "relax.nn.conv2d",
        _accepts_winograd,
        _plan_winograd,
        lambda call, machine: winograd.cheapest_tile(_conv_shape(call), machine)[1],
        adds=True,
    ),
    Entry(("packed_weights",), "relax.nn.conv2d", _accepts_conv2d, _plan_conv2d, _multiplies, adds=True),
    Entry(("split_float32", "flash_attention"), "relax.nn.attention", _accepts_tile_attention, _plan_tile_attention),
    Entry(
        ("flash_attention",),
        "relax.nn.attention",
        _accepts_attention,
        _plan_attention,
        lambda _call, _machine: 1.0,
    ),
    Entry(("fused_softmax",), "relax.nn.softmax", _accepts_softmax, _plan_softmax),
    Entry(
        ("fused_groupnorm",),
        "relax.nn.group_norm",
        _accepts_group_norm,
        _plan_group_norm,
        activations=("silu",),
        fuses="fused_groupnorm",
    ),
    Entry(("fused_layernorm",), "relax.nn.layer_norm", _accepts_layer_norm, _plan_layer_norm),
)


def find(call: relax.Expr, is_weight: IsWeight, machine: Machine, on: dict[str, bool]) -> Entry | None:
    """Return the cheapest entry that takes ``call``, of those whose optimisations are on."""
    if not isinstance(call, relax.Call) or not isinstance(call.op, tvm.ir.Op):
        return None
    wanted = (e for e in REGISTRY if e.operator == call.op.name and all(on[name] for name in e.optimisations))
    taking = [entry for entry in wanted if entry.accepts(call, is_weight, machine)]
    return min(taking, key=lambda entry: entry.cost(call, machine), default=None)
