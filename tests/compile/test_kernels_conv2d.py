"""The direct convolution on packed weights, against NumPy in float64."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernel_runner import SHAPES_OF_REGISTERS, assert_near, machine, panels, reads_picture, run_kernel

from compiler.kernels.conv2d import ENOUGH_PANELS, SMALL_ROWS, ConvShape, conv2d
from compiler.kernels.narrow_conv2d import MOST_OUTPUTS, accepts, narrow_conv2d


def reference_conv2d(x, w, stride, padding):
    """Convolve x [N, H, W, CI] with w [KH, KW, CI, CO], tap by tap, in float64."""
    top, left, bottom, right = padding
    x = np.pad(x.astype(np.float64), ((0, 0), (top, bottom), (left, right), (0, 0)))
    rows = (x.shape[1] - w.shape[0]) // stride[0] + 1
    columns = (x.shape[2] - w.shape[1]) // stride[1] + 1
    total = np.zeros((x.shape[0], rows, columns, w.shape[3]))
    for i in range(w.shape[0]):
        for j in range(w.shape[1]):
            window = x[:, i : i + rows * stride[0] : stride[0], j : j + columns * stride[1] : stride[1]]
            total += window[:, :rows, :columns] @ w[i, j].astype(np.float64)
    return total


def check(shape, operand_rows, machine_, size=1.0, seed=0, narrow=False):
    random = np.random.default_rng(seed)
    x = (random.standard_normal((shape.batch, shape.height, shape.width, shape.inputs)) * size).astype(np.float32)
    w = random.standard_normal((*shape.kernel, shape.inputs, shape.outputs)).astype(np.float32)
    pixels = shape.batch * shape.result[0] * shape.result[1]
    added = [(random.standard_normal((rows, shape.outputs)) * size).astype(np.float32) for rows in operand_rows]
    if narrow:
        packed = w.reshape(-1, shape.inputs, shape.outputs).transpose(2, 0, 1)
    else:
        packed = panels(w.reshape(-1, shape.outputs), machine_.panel)
    kernel = (narrow_conv2d if narrow else conv2d)(shape, operand_rows, machine_)
    result = run_kernel(kernel, [x, packed, *added], (pixels, shape.outputs))
    reference = reference_conv2d(x, w, shape.stride, shape.padding)
    assert reference.shape == (shape.batch, *shape.result, shape.outputs)
    reference = reference.reshape(pixels, shape.outputs)
    magnitude = reference_conv2d(np.abs(x), np.abs(w), shape.stride, shape.padding).reshape(pixels, shape.outputs)
    for operand in added:
        whole = operand.astype(np.float64).repeat(pixels // len(operand), axis=0)
        reference, magnitude = reference + whole, magnitude + np.abs(whole)
    assert_near(result, reference, float(magnitude.max()), 1e-6)


@st.composite
def shapes(draw):
    shape = ConvShape(
        batch=draw(st.integers(1, 3)),
        height=draw(st.integers(1, 11)),
        width=draw(st.one_of(st.integers(1, 11), st.integers(20, 37))),
        inputs=draw(st.integers(1, 35)),
        outputs=draw(st.one_of(st.integers(1, 40), st.sampled_from([64, 128, 257]))),
        kernel=(draw(st.integers(1, 4)), draw(st.integers(1, 4))),
        stride=(draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        padding=tuple(draw(st.integers(0, 2)) for _ in range(4)),
    )
    assume(all(extent >= size for extent, size in zip(shape.padded, shape.kernel, strict=True)))
    assume(reads_picture(shape))
    return shape


def test_convolutions_of_padding_alone_are_not_drawn():
    """A row of padding above and one below, of which a stride of 2 reads these two."""
    shape = ConvShape(1, 1, 5, 3, 4, (1, 1), (2, 1), (1, 0, 1, 0))
    assert not reads_picture(shape) and reads_picture(replace(shape, stride=(1, 1)))
    assert reads_picture(replace(shape, kernel=(2, 1))) and not reads_picture(replace(shape, padding=(1, 9, 1, 0)))


@settings(deadline=None, max_examples=14)
@given(
    shape=shapes(),
    registers=st.sampled_from(SHAPES_OF_REGISTERS),
    operands=st.lists(st.sampled_from(["bias", "time", "residual"]), max_size=3, unique=True),
    size=st.sampled_from([1.0, 1e30, 1e-30, 1e-39]),
    seed=st.integers(0, 99),
)
def test_any_shape_and_magnitude(shape, registers, operands, size, seed):
    pixels = shape.batch * shape.result[0] * shape.result[1]
    rows = {"bias": 1, "time": shape.batch, "residual": pixels}
    check(shape, tuple(rows[name] for name in operands), machine(*registers), size, seed)


@pytest.mark.parametrize(("lanes", "registers"), SHAPES_OF_REGISTERS)
def test_each_width_and_both_orders_of_loops(lanes, registers):
    """Tasks are panels at a small picture and rows of the picture at a large one."""
    machine_ = machine(lanes, registers)
    channels = machine_.panel * ENOUGH_PANELS - 3
    for height in (5, SMALL_ROWS + 2):
        shape = ConvShape(2, height, 7, 9, channels, (3, 3), (1, 1), (1, 1, 1, 1))
        check(shape, (1, 2), machine_)


def test_padding_on_one_side_only():
    """The VAE encoder pads right and bottom only, before a stride of 2."""
    check(ConvShape(1, 13, 9, 8, 16, (3, 3), (2, 2), (0, 0, 1, 1)), (1,), machine(16, 32))


@settings(deadline=None, max_examples=14)
@given(
    shape=shapes(),
    registers=st.sampled_from(SHAPES_OF_REGISTERS),
    vectors=st.integers(1, 3),
    outputs=st.integers(1, MOST_OUTPUTS),
    residual=st.booleans(),
    size=st.sampled_from([1.0, 1e30, 1e-30]),
    seed=st.integers(0, 99),
)
def test_few_outputs(shape, registers, vectors, outputs, residual, size, seed):
    """Input channels in the lanes: any kernel, stride and padding."""
    shape, machine_ = replace(shape, inputs=vectors * registers[0], outputs=outputs), machine(*registers)
    assert accepts(shape, machine_)
    check(shape, (1, shape.pixels) if residual else (1,), machine_, size, seed, narrow=True)


def test_what_the_kernel_of_few_outputs_takes():
    shape = ConvShape(1, 5, 5, 32, 4, (3, 3), (1, 1), (1, 1, 1, 1))
    assert accepts(shape, machine(16, 32))
    assert not accepts(replace(shape, outputs=MOST_OUTPUTS + 1), machine(16, 32))
    assert not accepts(replace(shape, inputs=24), machine(16, 32))
