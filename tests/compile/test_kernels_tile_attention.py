"""Attention in tiles of words against NumPy in float64."""

import json
import math

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_runner import UNITS, assert_near, needs_unit, run_kernel, word_machine
from test_kernels_flash_attention import reference_attention

from compiler.kernels.flash_attention import AttentionShape
from compiler.kernels.split import BLOCK
from compiler.kernels.tile_attention import KEY_TILES, QUERY_BLOCKS, accepts, tile_attention
from compiler.target import resolve_target

KEY_BLOCK = KEY_TILES * BLOCK
RELATIVE = {1: 8e-3, 2: 2e-5}  # of the largest value: bfloat16 has 8 bits, two parts of it 16


def attend(shape, machine_, sharpness=1.0, size=1.0, seed=0):
    """Run the kernel. ``sharpness`` scales the queries, ``size`` the values."""
    random = np.random.default_rng(seed)

    def draw(tokens, width, factor):
        return (random.standard_normal((shape.batch, tokens, shape.heads, width)) * factor).astype(np.float32)

    query, key = draw(shape.queries, shape.size, sharpness), draw(shape.keys, shape.size, 1.0)
    value = draw(shape.keys, shape.value_size, size)
    result = run_kernel(tile_attention(shape, machine_), [query, key, value], shape.output)
    reference, largest = reference_attention(query, key, value, shape.scale, shape.offset)
    return result, reference, (2 + largest) * float(np.abs(value).max())


def check(shape, machine_, sharpness=1.0, size=1.0, seed=0):
    """An error of the scores is one of the weights, relative: so large scores widen the allowance."""
    result, reference, scale = attend(shape, machine_, sharpness, size, seed)
    seen = ~np.isnan(reference)
    assert np.isfinite(result).all()
    if seen.any():
        error = np.abs(result[seen] - reference[seen]).max()
        assert error <= RELATIVE[machine_.parts] * scale, f"{error} of {scale}"
        assert np.abs(reference[seen]).max() > 10 * error, "this case could not tell zeros from a right result"


@st.composite
def shapes(draw):
    size = draw(st.one_of(st.integers(1, 90), st.sampled_from([40, 80, 160])))
    keys = draw(st.one_of(st.integers(1, 20), st.integers(KEY_BLOCK - 5, 2 * KEY_BLOCK + 9)))
    queries = draw(st.one_of(st.integers(1, 90), st.just(32 * QUERY_BLOCKS + 7)))
    return AttentionShape(
        batch=draw(st.integers(1, 2)),
        heads=draw(st.integers(1, 3)),
        queries=queries,
        keys=keys,
        size=size,
        value_size=draw(st.one_of(st.just(size), st.integers(1, 90))),
        scale=draw(st.sampled_from([1 / math.sqrt(size), 0.3])),
        offset=draw(st.one_of(st.none(), st.sampled_from([0, keys - queries]), st.integers(-3, 20))),
    )


@needs_unit
@settings(deadline=None, max_examples=20)
@given(
    shape=shapes(),
    unit=st.sampled_from(UNITS or [None]),
    cores=st.integers(1, 3),
    cache=st.sampled_from([0, 1 << 20]),
    sharpness=st.sampled_from([1.0, 3.0, 1e-20, 1e-42]),
    size=st.sampled_from([1.0, 1e30, 1e-30]),
    seed=st.integers(0, 99),
)
def test_any_shape_and_magnitude(shape, unit, cores, cache, sharpness, size, seed):
    check(shape, word_machine(unit, cores, cache), sharpness, size, seed)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("cache", [0, 1 << 20])
@pytest.mark.parametrize("keys", [1, 77, KEY_BLOCK, KEY_BLOCK + 1, 2 * KEY_BLOCK])
def test_each_number_of_keys(keys, cache, unit):
    """Tails of queries, whole and broken blocks of keys, words made by each task and before all."""
    check(AttentionShape(2, 2, 67, keys, 40, 40, 40**-0.5, None), word_machine(unit, cache=cache))


@pytest.mark.parametrize("unit", UNITS)
def test_two_parts_keep_the_accuracy_of_float32(unit):
    shape = AttentionShape(1, 2, 320, 320, 40, 40, 40**-0.5, None)
    result, reference, _ = attend(shape, word_machine(unit))
    error = math.sqrt(np.mean((result - reference) ** 2))
    assert 20 * math.log10(np.abs(reference).max() / error) >= {1: 55, 2: 110}[unit[1]]


@pytest.mark.parametrize("unit", UNITS)
def test_a_maximum_that_keeps_growing_rescales_what_came_before(unit):
    """Each block of keys has larger scores than the one before, and the last key wins."""
    keys, size = 3 * KEY_BLOCK + 5, 8
    query = np.ones((1, 40, 1, size), np.float32)
    key = np.linspace(-3, 3, keys, dtype=np.float32)[None, :, None, None].repeat(size, axis=3)
    value = np.arange(keys, dtype=np.float32)[None, :, None, None].repeat(4, axis=3)
    shape = AttentionShape(1, 1, 40, keys, size, 4, 1.0, None)
    result = run_kernel(tile_attention(shape, word_machine(unit)), [query, key, value], shape.output)
    reference, _ = reference_attention(query, key, value, 1.0, None)
    assert reference.min() > keys - 10
    np.testing.assert_allclose(result, reference, rtol={1: 5e-3, 2: 1e-4}[unit[1]])


@pytest.mark.parametrize("unit", UNITS)
def test_rows_that_see_nothing_are_numbers(unit):
    shape = AttentionShape(1, 2, 40, 50, 8, 8, 1.0, offset=-7)
    result, reference, scale = attend(shape, word_machine(unit))
    assert np.isnan(reference[:, :7]).all() and np.isfinite(result).all()
    assert_near(result[:, 7:], reference[:, 7:], scale, {1: 2e-3, 2: 2e-5}[unit[1]])


@pytest.mark.parametrize("unit", UNITS)
def test_a_causal_row_ignores_what_comes_after(unit):
    shape = AttentionShape(1, 1, 20, 20, 8, 8, 1.0, offset=0)
    random = np.random.default_rng(0)
    query, key, value = random.standard_normal((3, 1, 20, 1, 8)).astype(np.float32)
    kernel = tile_attention(shape, word_machine(unit))
    before = run_kernel(kernel, [query, key, value], shape.output)
    key[:, 10:] += 5
    value[:, 10:] *= -9
    after = run_kernel(kernel, [query, key, value], shape.output)
    assert np.array_equal(before[:, :10], after[:, :10])
    assert not np.isclose(before[:, 10:], after[:, 10:]).all(axis=-1).any()


@pytest.mark.parametrize("unit", UNITS)
def test_denormal_values_count_as_nothing(unit):
    """The units flush them: an absolute error of at most the smallest normal number a key."""
    shape = AttentionShape(1, 1, 33, 40, 16, 16, 0.25, None)
    result, reference, _ = attend(shape, word_machine(unit), size=1e-39)
    assert np.abs(result - reference).max() <= shape.keys * 2.0**-126


@pytest.mark.parametrize(
    ("mcpu", "dtype", "instruction"), [("sapphirerapids", "float32", "tdpbf16ps"), ("znver5", "bfloat16", "vdpbf16ps")]
)
def test_code_for_a_cpu_with_a_unit(mcpu, dtype, instruction):
    """Compiles anywhere, and multiplies by the unit; other machines keep the kernel of vectors."""
    cpu = resolve_target(json.dumps({"kind": "llvm", "mcpu": mcpu, "num-cores": 2}), dtype)
    shape = AttentionShape(1, 2, 40, 77, 40, 40, 40**-0.5, None)
    assert accepts(shape, cpu.machine)
    assert not accepts(shape, resolve_target(json.dumps({"kind": "llvm", "mcpu": "skylake-avx512"})).machine)
    kernel = tile_attention(shape, cpu.machine).with_attr("global_symbol", "main")
    assembly = tvm.compile(tvm.IRModule({"main": kernel}), target=cpu.target).mod.inspect_source("asm")
    assert instruction in assembly
