"""Convolution and multiply in tiles of words against NumPy in float64."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import tvm
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernel_runner import UNITS, assert_near, needs_unit, panels, reads_picture, word_machine
from test_kernels_conv2d import reference_conv2d

from compiler.kernels import tile_winograd
from compiler.kernels.conv2d import ConvShape
from compiler.kernels.split import BLOCK, WORDS
from compiler.kernels.tile_conv2d import COLUMNS, FIELD, accepts, pack_words, tile_conv2d
from compiler.kernels.upsampled import add_taps, has_phases
from compiler.target import resolve_target

RELATIVE = {1: 2e-6, 2: 2e-5}  # one part against numbers that are already rounded: what is left is float32's sums
LANES = 16


def rounded(x):
    """Round float32 to bfloat16."""
    return ((x.view(np.uint32) + np.uint32(0x8000)) & np.uint32(0xFFFF0000)).view(np.float32)


def gated_panels(weight):
    """Pack [rows, values and gates] as panels of 16 values and their gates."""
    rows, columns = weight.shape
    packed = weight.reshape(rows, 2, columns // 2 // LANES, LANES).transpose(2, 0, 1, 3)
    return np.ascontiguousarray(packed.reshape(-1, rows, 2 * LANES))


def words(packed, parts):
    """Pack panels as pairs of bfloat16 numbers, the second part of what the first leaves."""
    found = []
    for _ in range(parts):
        halves = rounded(packed).view(np.uint32) >> 16
        packed = packed - rounded(packed)
        halves = halves.reshape(len(packed), -1, 2, WORDS, 2, LANES)  # panel, block, half, pair, side, column
        found.append((halves[:, :, 0] | halves[:, :, 1] << 16).transpose(0, 1, 3, 2, 4))
    return np.ascontiguousarray(np.stack(found, axis=2))


def run(function, arrays, output, dtype=np.float32):
    """Run a kernel on arrays of any type; float outputs are full of NaN before."""
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    library = tvm.compile(module, target=resolve_target("llvm").target)
    result = tvm.runtime.tensor(np.full(output, np.nan if dtype == np.float32 else 7, dtype))
    library["main"](*(tvm.runtime.tensor(x) for x in arrays), result)
    return result.numpy()


def activate(x, activation):
    """Apply an activation in float64."""
    gelu = np.vectorize(lambda v: 0.5 * v * math.erfc(-v / math.sqrt(2)))
    if activation == "geglu":
        value, gate = np.split(x, 2, axis=1)
        return value * gelu(gate)
    return {None: lambda v: v, "silu": lambda v: v / (1 + np.exp(-v)), "gelu": gelu}[activation](x)


def allowance(shape, unit):
    """Return what a unit may be off by, of the magnitudes: of a doubled picture, sums of weights are rounded."""
    return 2.0**-8 if has_phases(shape) and unit[1] == 1 else RELATIVE[unit[1]]


def convolve(shape, operand_rows, machine_, activation=None, size=1.0, seed=0, widths=(), tiling=None):
    """Return the kernel's result, the reference, and the sum of the magnitudes that were added up.

    With ``widths`` the kernel reads channels of several arguments, with ``tiling`` it is Winograd's.
    """
    random = np.random.default_rng(seed)
    small = (shape.batch, shape.height // shape.upsample, shape.width // shape.upsample, shape.inputs)
    x = (random.standard_normal(small) * size).astype(np.float32)
    w = random.standard_normal((*shape.kernel, shape.inputs, shape.outputs)).astype(np.float32)
    added = [(random.standard_normal((rows, shape.outputs)) * size).astype(np.float32) for rows in operand_rows]
    matrix = w.reshape(-1, shape.outputs)
    packed = gated_panels(matrix) if activation == "geglu" else panels(matrix, 2 * LANES)
    output = (shape.pixels, shape.outputs // 2 if activation == "geglu" else shape.outputs)
    if tiling is not None:
        made = (tile_winograd.POINTS * len(packed), shape.inputs, 2 * LANES)
        packed = run(tile_winograd.transform_panels(len(packed), shape.inputs, machine_), [packed], made)
    elif has_phases(shape):
        made = (4 * len(packed), 4 * shape.inputs, 2 * LANES)
        packed = run(add_taps(len(packed), shape.inputs, machine_), [packed], made)
    weight = words(packed, machine_.parts)
    parts = [np.ascontiguousarray(part) for part in np.split(x, np.cumsum(widths)[:-1], axis=3)] if widths else [x]
    if tiling is None:
        kernel = tile_conv2d(shape, operand_rows, machine_, activation, widths=widths)
    else:
        kernel = tile_winograd.tile_winograd(shape, operand_rows, machine_, widths, tiling)
    result = run(kernel, [*parts, weight, *added], output)
    if machine_.parts == 1:
        x, w = rounded(x), w if has_phases(shape) else rounded(w)  # of a doubled picture, sums of weights are rounded
    x = x.repeat(shape.upsample, axis=1).repeat(shape.upsample, axis=2)
    reference, magnitude = (
        reference_conv2d(of(x), of(w), shape.stride, shape.padding).reshape(shape.pixels, -1)
        for of in (lambda a: a, np.abs)
    )
    for operand in added:
        whole = operand.astype(np.float64).repeat(shape.pixels // len(operand), axis=0)
        reference, magnitude = reference + whole, magnitude + np.abs(whole)
    largest = float(magnitude.max())
    if activation == "geglu":  # a product of two sums
        largest *= max(1.0, float(np.abs(reference).max()))
    return result, activate(reference, activation), largest


@st.composite
def shapes(draw):
    upsample = draw(st.sampled_from([1, 1, 2]))
    stride = draw(st.sampled_from([1, 2]))
    shape = ConvShape(
        batch=draw(st.integers(1, 3)),
        height=draw(st.integers(1, 9)) * upsample,
        width=draw(st.one_of(st.integers(1, 9), st.integers(20, 37))) * upsample,
        inputs=BLOCK * draw(st.integers(1, 3)),
        outputs=draw(st.one_of(st.integers(1, 40), st.sampled_from([64, 127]))),
        kernel=draw(st.sampled_from([(1, 1), (3, 3), (2, 3)])),
        stride=(stride, stride),
        padding=tuple(draw(st.integers(0, 2)) for _ in range(4)),
        upsample=upsample,
    )
    assume(all(extent >= size for extent, size in zip(shape.padded, shape.kernel, strict=True)))
    assume(shape.pixels >= 16 and accepts(shape, word_machine(UNITS[0])))
    assume(reads_picture(shape))
    return shape


@needs_unit
@settings(deadline=None, max_examples=20)
@given(
    shape=shapes(),
    unit=st.sampled_from(UNITS or [None]),
    cores=st.integers(1, 3),
    cache=st.sampled_from([1, 1 << 15, 1 << 20]),
    operands=st.lists(st.sampled_from(["bias", "time", "residual"]), max_size=3, unique=True),
    size=st.sampled_from([1.0, 1e30, 1e-30]),
    seed=st.integers(0, 99),
)
def test_any_shape_and_magnitude(shape, unit, cores, cache, operands, size, seed):
    """A small cache takes the channels in several groups."""
    rows = {"bias": 1, "time": shape.batch, "residual": shape.pixels}
    operand_rows = tuple(rows[name] for name in operands)
    result, reference, scale = convolve(shape, operand_rows, word_machine(unit, cores, cache), size=size, seed=seed)
    assert_near(result, reference, scale, allowance(shape, unit))


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("cache", [1 << 10, 1 << 20])
@pytest.mark.parametrize("widths", [(64, 32), (32, 96, 32)])
def test_channels_of_several_arguments(widths, cache, unit):
    """In a small cache a group of channels may begin or end within an argument, or lie in another one."""
    shape = ConvShape(2, 6, 7, sum(widths), 45, (3, 3), (1, 1), (1, 1, 1, 1))
    result, reference, scale = convolve(shape, (1,), word_machine(unit, cache=cache), widths=widths)
    assert_near(result, reference, scale, RELATIVE[unit[1]])


@needs_unit
@settings(deadline=None, max_examples=12)
@given(
    batch=st.integers(1, 3),
    size=st.tuples(st.integers(1, 19), st.integers(1, 19)),
    widths=st.sampled_from([(), (32, 64)]),
    outputs=st.one_of(st.integers(1, 40), st.sampled_from([64, 127])),
    padding=st.tuples(*[st.integers(0, 2)] * 4),
    field=st.sampled_from([0, 32, 64]),
    shares=st.sampled_from([0, 1, 4]),
    operands=st.lists(st.sampled_from(["bias", "time", "residual"]), max_size=2, unique=True),
)
def test_winograd_in_tiles(batch, size, widths, outputs, padding, field, shares, operands):
    unit = next((unit for unit in UNITS if unit[1] == 2), None)
    if unit is None:
        pytest.skip("this CPU has no unit that splits float32")
    shape = ConvShape(batch, *size, sum(widths) or 32, outputs, (3, 3), (1, 1), padding)
    assume(all(extent >= 3 for extent in shape.padded))
    rows = {"bias": 1, "time": shape.batch, "residual": shape.pixels}
    operand_rows, machine_ = tuple(rows[name] for name in operands), word_machine(unit)
    tiling = tile_winograd.Tiling(field=field, shares=shares)
    result, reference, scale = convolve(shape, operand_rows, machine_, widths=widths, tiling=tiling)
    assert_near(result, reference, scale, 4 * RELATIVE[2])


@needs_unit
@settings(deadline=None, max_examples=12)
@given(
    size=st.tuples(st.integers(1, 9), st.one_of(st.integers(1, 9), st.integers(20, 37))),
    inputs=st.sampled_from([32, 96]),
    outputs=st.one_of(st.integers(1, 40), st.sampled_from([64, 127])),
    unit=st.sampled_from(UNITS or [None]),
    cores=st.integers(1, 3),
    cache=st.sampled_from([1, 1 << 15, 1 << 20]),
    operands=st.lists(st.sampled_from(["bias", "time", "residual"]), max_size=2, unique=True),
)
def test_a_doubled_picture_in_four_phases(size, inputs, outputs, unit, cores, cache, operands):
    shape = ConvShape(2, 2 * size[0], 2 * size[1], inputs, outputs, (3, 3), (1, 1), (1, 1, 1, 1), 2)
    assert has_phases(shape) and not has_phases(replace(shape, padding=(1, 1, 0, 1)))
    rows = {"bias": 1, "time": shape.batch, "residual": shape.pixels}
    machine_ = word_machine(unit, cores, cache)
    result, reference, scale = convolve(shape, tuple(rows[name] for name in operands), machine_)
    assert_near(result, reference, scale, allowance(shape, unit))


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(("activation", "outputs"), [("silu", 45), ("gelu", 45), ("geglu", 96)])
def test_multiply_with_an_activation(activation, outputs, unit):
    """A multiply is the convolution of a picture one pixel wide."""
    shape = ConvShape(1, 70, 1, 64, outputs, (1, 1), (1, 1), (0, 0, 0, 0))
    result, reference, scale = convolve(shape, (1, 70), word_machine(unit, cores=3), activation)
    assert_near(result, reference, scale, RELATIVE[unit[1]])


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("cache", [1 << 15, 1 << 20])
def test_several_fields_of_several_pictures(cache, unit):
    """Pictures of more pixels and columns than a field, whose last field is smaller both ways."""
    shape = ConvShape(2, 19, 2 * COLUMNS + 3, 64, 40, (3, 3), (1, 1), (1, 1, 1, 1))
    assert shape.pixels > FIELD and shape.result[0] % (FIELD // COLUMNS)
    result, reference, scale = convolve(shape, (1,), word_machine(unit, cache=cache))
    assert_near(result, reference, scale, RELATIVE[unit[1]])


@pytest.mark.parametrize("unit", UNITS)
def test_denormals_count_as_nothing(unit):
    """The units flush them: an absolute error of at most the smallest normal number a product."""
    shape = ConvShape(1, 5, 7, 32, 33, (3, 3), (1, 1), (1, 1, 1, 1))
    result, reference, _ = convolve(shape, (), word_machine(unit), size=1e-39)
    products, largest_weight = 9 * shape.inputs, 6.0
    assert np.abs(result - reference).max() <= products * largest_weight * 2.0**-126


@pytest.mark.parametrize("unit", UNITS)
def test_words_hold_the_rounded_numbers_k_and_k_plus_16(unit):
    made = word_machine(unit)
    weight = np.random.default_rng(0).standard_normal((3, 64, 32)).astype(np.float32)
    result = run(pack_words(3, 64, made), [weight], (3, 2, made.parts, 2, WORDS, WORDS), np.uint32)
    assert np.array_equal(result, words(weight, made.parts))
    first = (result[1, 1, 0, 0, 5, 7] << 16).view(np.float32)
    second = (result[1, 1, 0, 0, 5, 7] & np.uint32(0xFFFF0000)).view(np.float32)
    assert (first, second) == (rounded(weight)[1, BLOCK + 5, 7], rounded(weight)[1, BLOCK + WORDS + 5, 7])


@pytest.mark.parametrize(
    ("mcpu", "dtype", "unit", "instructions"),
    [
        ("sapphirerapids", "float32", "amx", ("ldtilecfg", "tdpbf16ps", "tilestored", "tilerelease")),
        ("sapphirerapids", "bfloat16", "amx", ("ldtilecfg", "tdpbf16ps", "tilestored", "tilerelease")),
        ("znver5", "bfloat16", "dot", ("vdpbf16ps",)),
        ("znver5", "float32", None, ()),
        ("skylake-avx512", "float32", None, ()),
    ],
)
def test_code_for_a_cpu_with_a_unit(mcpu, dtype, unit, instructions):
    """Compiles anywhere, and multiplies by the unit; without one the kernels of vectors stay."""
    cpu = resolve_target(json.dumps({"kind": "llvm", "mcpu": mcpu, "num-cores": 2}), dtype)
    shape = ConvShape(1, 8, 8, 64, 40, (3, 3), (1, 1), (1, 1, 1, 1))
    assert cpu.machine.unit == unit and accepts(shape, cpu.machine) == (unit is not None)
    if unit is not None:
        kernel = tile_conv2d(shape, (1,), cpu.machine).with_attr("global_symbol", "main")
        assembly = tvm.compile(tvm.IRModule({"main": kernel}), target=cpu.target).mod.inspect_source("asm")
        assert all(name in assembly for name in instructions)
