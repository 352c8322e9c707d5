"""3x3 convolution by Winograd's filtering, against NumPy in float64."""

from dataclasses import replace

import numpy as np
import pytest
import tvm.tirx.script.builder.ir as T
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_runner import SHAPES_OF_REGISTERS, assert_near, machine, panels, run_kernel

from compiler.kernels.conv2d import ConvShape
from compiler.kernels.tir import Vectors, argument, prim_func
from compiler.kernels.winograd import OUTPUT_TILES, Tiling, accepts, cheapest_tile, upsamples, winograd
from compiler.kernels.winograd_transform import matrices, minimal_filter, transform

RELATIVE = {2: 2e-6, 4: 2e-5, 6: 5e-5}  # of the sum of magnitudes; the transforms of large tiles cost some digits


def convolve(shape, operand_rows, machine_, tile, size=1.0, seed=0, task=0):
    """Run the kernel; return its result, the float64 reference and the sum of magnitudes of one element."""
    random = np.random.default_rng(seed)
    small = (shape.height // shape.upsample, shape.width // shape.upsample)
    x = (random.standard_normal((shape.batch, *small, shape.inputs)) * size).astype(np.float32)
    w = random.standard_normal((3, 3, shape.inputs, shape.outputs)).astype(np.float32)
    added = [(random.standard_normal((rows, shape.outputs)) * size).astype(np.float32) for rows in operand_rows]
    packed = panels(w.reshape(-1, shape.outputs), machine_.panel)
    kernel = winograd(shape, operand_rows, machine_, tile, Tiling(task=task))
    result = run_kernel(kernel, [x, packed, *added], (shape.pixels, shape.outputs))
    top, left, bottom, right = shape.padding
    x = x.repeat(shape.upsample, axis=1).repeat(shape.upsample, axis=2)
    padded = np.pad(x.astype(np.float64), ((0, 0), (top, bottom), (left, right), (0, 0)))
    rows, columns = shape.result
    windows = [padded[:, i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
    taps = w.astype(np.float64).reshape(9, shape.inputs, shape.outputs)
    reference = sum(window @ tap for window, tap in zip(windows, taps, strict=True))
    magnitude = sum(np.abs(window) @ np.abs(tap) for window, tap in zip(windows, taps, strict=True))
    reference, magnitude = (value.reshape(-1, shape.outputs) for value in (reference, magnitude))
    for operand in added:
        whole = operand.astype(np.float64).repeat(shape.pixels // len(operand), axis=0)
        reference, magnitude = reference + whole, magnitude + np.abs(whole)
    return result, reference, float(magnitude.max())


@pytest.mark.parametrize("tile", [2, 4, 6, 8])
def test_the_matrices_filter(tile):
    at, g, bt = (np.array(matrix) for matrix in matrices(tile))
    random = np.random.default_rng(tile)
    signal, taps = random.standard_normal(tile + 2), random.standard_normal(3)
    expected = [signal[i : i + 3] @ taps for i in range(tile)]
    np.testing.assert_allclose(at @ ((g @ taps) * (bt @ signal)), expected, rtol=1e-12)


@st.composite
def cases(draw):
    lanes, registers = draw(st.sampled_from(SHAPES_OF_REGISTERS))
    machine_ = machine(lanes, registers, cores=draw(st.integers(1, 3)))
    upsample = draw(st.sampled_from([1, 1, 2]))
    padding = tuple(draw(st.integers(0, 1)) for _ in range(4)) if upsample == 1 else (1, 1, 1, 1)
    shape = ConvShape(
        draw(st.integers(1, 3)),
        draw(st.integers(3, 21)) * upsample,
        draw(st.integers(3, 21)) * upsample,
        lanes * draw(st.integers(1, 3)),
        machine_.panel * draw(st.integers(1, 2)),
        (3, 3),
        (1, 1),
        padding,
        upsample,
    )
    operands = draw(st.lists(st.sampled_from([1, shape.batch, shape.pixels]), max_size=2))
    return shape, tuple(operands), machine_, draw(st.sampled_from(OUTPUT_TILES))


@settings(deadline=None, max_examples=16)
@given(case=cases(), size=st.sampled_from([1.0, 1e25, 1e-25]), seed=st.integers(0, 99), task=st.sampled_from([0, 1, 2]))
def test_any_shape_and_magnitude(case, size, seed, task):
    result, reference, scale = convolve(*case, size, seed, task)
    assert_near(result, reference, scale, RELATIVE[case[3]])


@pytest.mark.parametrize("tile", OUTPUT_TILES)
def test_many_tiles_and_channels_that_fill_no_block(tile):
    """More tiles than a group holds, and inputs that are no multiple of the block of channels."""
    shape = ConvShape(2, 50, 46, 48, 32, (3, 3), (1, 1), (1, 1, 1, 1))
    result, reference, scale = convolve(shape, (1, shape.pixels), machine(16, 32), tile)
    assert_near(result, reference, scale, RELATIVE[tile])


def test_the_cheapest_tile_follows_the_picture():
    """Large pictures take large tiles; what the kernel can't take, or what is too small to gain, takes none."""

    def tile(side, channels, **changed):
        geometry = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1, 1, 1)} | changed
        shape = ConvShape(2, side, side, channels, channels, **geometry)
        if not accepts(shape, machine(16, 32)):
            return None
        m, cost = cheapest_tile(shape, machine(16, 32))
        return m if cost < shape.multiplies else None

    assert tile(256, 256) == 6
    assert tile(64, 320) == 4
    assert tile(16, 1280) == 4
    assert tile(8, 1280) == 4
    assert tile(4, 1280) == 2
    assert tile(64, 320, stride=(2, 2)) is None
    assert tile(64, 320, kernel=(1, 1), padding=(0, 0, 0, 0)) is None
    assert tile(64, 24) is None
    assert tile(1, 1280) is None


def test_a_doubled_picture_takes_fewer_products():
    """The product of the point -1 vanishes: 25 of 36 are left, and 49 of 64."""
    assert [minimal_filter(tile, 2).products for tile in OUTPUT_TILES] == [3, 5, 7]
    assert [minimal_filter(tile).products for tile in OUTPUT_TILES] == [4, 6, 8]


def test_which_pictures_are_upsampled_on_the_way():
    shape = ConvShape(1, 12, 12, 16, 32, (3, 3), (1, 1), (1, 1, 1, 1))
    assert [upsamples(shape, factor, machine(16, 32)) for factor in (1, 2, 3, 4, 5)] == [True, True, True, False, False]
    assert not upsamples(replace(shape, padding=(0, 1, 1, 0)), 2, machine(16, 32))
    assert not upsamples(shape, 3, replace(machine(16, 32), winograd_tile=4))


@pytest.mark.parametrize("tile", OUTPUT_TILES)
@pytest.mark.parametrize("upsample", [1, 2])
def test_transforms_are_the_matrices(tile, upsample):
    """Pairs of points share their work; the sums are those of the matrix."""
    for matrix in (minimal_filter(tile, upsample).at, minimal_filter(tile, upsample).bt, minimal_filter(tile).g):
        count = len(matrix[0])

        def body(matrix=matrix, count=count):
            x, y = argument("x", (count, 4)), argument("y", (len(matrix), 4))
            v = Vectors(4)
            with T.parallel(1):
                for row, value in enumerate(transform(v, matrix, [v.load(x, index, 0) for index in range(count)])):
                    v.store(y, value, row, 0)

        values = np.random.default_rng(tile).standard_normal((count, 4)).astype(np.float32)
        result = run_kernel(prim_func(body), [values], (len(matrix), 4))
        np.testing.assert_allclose(result, np.array(matrix) @ values, rtol=1e-4, atol=1e-4)
