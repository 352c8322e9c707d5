"""The gate lets through what is right and nothing else."""

import dataclasses
import math
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from small_component import block_component, load, save

from compiler.verify import verify
from runtime import artifact
from runtime.parameters import write_parameters
from runtime.quality import FLOOR, psnr
from utils.errors import UserError


def test_psnr_is_the_paper_formula():
    reference = np.array([[1.0, -4.0], [2.0, 0.0]], np.float32)
    assert psnr(reference, reference + 0.25) == pytest.approx(20 * math.log10(4 / 0.25))
    assert psnr(reference, reference) == math.inf


@given(st.integers(1, 200), st.floats(-30, 30), st.integers(0, 99))
def test_zeros_and_constants_are_far_below_the_floor(count, constant, seed):
    reference = np.random.default_rng(seed).standard_normal(count + 1).astype(np.float32)
    for value in (0.0, constant, reference.mean()):
        assert psnr(reference, np.full_like(reference, value)) < min(FLOOR.values())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_no_number_fails(bad):
    reference = np.arange(1000, dtype=np.float32)
    result = reference.copy()
    result[500] = bad
    assert psnr(reference, result) == -math.inf


def test_a_reference_that_is_no_number_fails():
    reference = np.array([1.0, np.nan, 2.0], np.float32)
    assert not psnr(reference, np.ones(3, np.float32)) >= min(FLOOR.values())


def test_wrong_shape_fails_even_where_it_would_broadcast():
    reference = np.arange(6, dtype=np.float32).reshape(2, 3)
    for other in (reference[:1], reference.T, reference[None], reference.ravel()):
        assert psnr(reference, other) == -math.inf


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_constant_reference_proves_nothing(value):
    constant = np.full((4, 4), value, np.float32)
    assert psnr(constant, constant) == -math.inf


def test_float16_results_are_compared_in_full_precision():
    reference = np.linspace(-1, 1, 4096, dtype=np.float32) * 60000
    assert 60 < psnr(reference, reference.astype(np.float16)) < 90


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("block")
    return block_component(), save(block_component(), folder), folder


def test_a_right_component_passes_and_each_function_is_measured(saved):
    component, entry, folder = saved
    parity = verify(component, load(entry, "block", folder), "float32")
    assert parity.psnr.keys() == {"pair", "single"} and min(parity.psnr.values()) > 100
    assert sum(parity.seconds.values()) > 0 and any(name.startswith("conv2d") for name in parity.seconds)


def different(values, random):
    """Return values that are off; words, two numbers each, in another order."""
    if values.dtype == np.uint32:
        return random.permutation(values.reshape(-1)).reshape(values.shape)
    return values + 0.4 * random.standard_normal(values.shape).astype(np.float32)


def test_every_altered_parameter_fails_the_gate_by_name(saved, tmp_path):
    """Any packed parameter that is off is found: each of them reaches the output."""
    component, entry, folder = saved
    raw = load_file(folder / entry.parameters.path)
    names = list(entry.packing)
    types = {name: (list(raw[name].shape), str(raw[name].dtype)) for name in names}
    assert len(names) > 10
    for index, altered in enumerate(names):
        place = tmp_path / str(index)  # a new one each time: files that an engine has mapped must not change
        place.mkdir()
        shutil.copy(folder / entry.library.path, place)
        other = different(raw[altered], np.random.default_rng(index))
        arrays = ((name, other if name == altered else raw[name]) for name in names)
        write_parameters(place / "p", types, arrays)
        changed = dataclasses.replace(
            entry,
            library=artifact.describe(place / "block.so", place),
            parameters=artifact.describe(place / "p", place),
        )
        with pytest.raises(
            UserError, match=r"block\.(pair|single): PSNR -?\d+\.\d dB .*floor of 60 dB; nothing was saved"
        ):
            verify(component, load(changed, "block", place), "float32")


def test_a_fault_in_one_function_only_is_found(saved):
    """The functions share parameters but not code: each is compared."""
    component, entry, folder = saved
    engine = load(entry, "block", folder)

    def run(function, *inputs):
        return engine(function, *inputs) * np.float32(1.01 if function == "single" else 1)

    run.instrument = engine.instrument
    with pytest.raises(UserError, match=r"block\.single: PSNR [345]\d\.\d dB"):
        verify(component, run, "float32")
    assert verify(component, run, "float16").psnr["pair"] > 100  # the floor of half precision is lower
