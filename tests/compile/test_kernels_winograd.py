"""3x3 convolution by Winograd's filtering, against NumPy in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_runner import SHAPES_OF_REGISTERS, assert_near, machine, panels, run_kernel

from compiler.kernels.conv2d import ConvShape
from compiler.kernels.winograd import OUTPUT_TILES, accepts, cheapest_tile, winograd
from compiler.kernels.winograd_transform import matrices

RELATIVE = {2: 2e-6, 4: 2e-5}  # of the sum of magnitudes; the transforms of F(4 x 4) cost some digits


def convolve(shape, operand_rows, machine_, tile, size=1.0, seed=0):
    """Run the kernel; return its result, the float64 reference and the sum of magnitudes of one element."""
    random = np.random.default_rng(seed)
    x = (random.standard_normal((shape.batch, shape.height, shape.width, shape.inputs)) * size).astype(np.float32)
    w = random.standard_normal((3, 3, shape.inputs, shape.outputs)).astype(np.float32)
    added = [(random.standard_normal((rows, shape.outputs)) * size).astype(np.float32) for rows in operand_rows]
    packed = panels(w.reshape(-1, shape.outputs), machine_.panel)
    kernel = winograd(shape, operand_rows, machine_, tile)
    result = run_kernel(kernel, [x, packed, *added], (shape.pixels, shape.outputs))
    top, left, bottom, right = shape.padding
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
    padding = tuple(draw(st.integers(0, 1)) for _ in range(4))
    shape = ConvShape(
        draw(st.integers(1, 3)),
        draw(st.integers(3, 21)),
        draw(st.integers(3, 21)),
        lanes * draw(st.integers(1, 3)),
        machine_.panel * draw(st.integers(1, 2)),
        (3, 3),
        (1, 1),
        padding,
    )
    operands = draw(st.lists(st.sampled_from([1, shape.batch, shape.pixels]), max_size=2))
    return shape, tuple(operands), machine_, draw(st.sampled_from(OUTPUT_TILES))


@settings(deadline=None, max_examples=12)
@given(case=cases(), size=st.sampled_from([1.0, 1e25, 1e-25]), seed=st.integers(0, 99))
def test_any_shape_and_magnitude(case, size, seed):
    result, reference, scale = convolve(*case, size, seed)
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

    assert tile(64, 320) == 4
    assert tile(8, 1280) == 2
    assert tile(64, 320, stride=(2, 2)) is None
    assert tile(64, 320, kernel=(1, 1), padding=(0, 0, 0, 0)) is None
    assert tile(64, 24) is None
    assert tile(1, 1280) is None
