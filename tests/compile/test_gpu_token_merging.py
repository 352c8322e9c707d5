"""Token matching, merging and parting on an emulated GPU: kernels against NumPy, a merged UNet against PyTorch."""

from __future__ import annotations

import shutil

import ml_dtypes
import numpy as np
import pytest
import tvm
from gpu_component import emulate, spilled
from gpu_emulator import device_code, emulator
from test_kernels_token_merging import check_match, random_slots

from compiler.gpu.machine import Gpu
from compiler.gpu.token_matching import token_matching
from compiler.gpu.token_merging import merge_tokens, unmerge_tokens
from compiler.kernels.token_matching import MatchShape
from compiler.verify import verify
from runtime.quality import FLOOR
from utils.config import TokenMerging

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="CUDA's headers are needed")
GPUS = [Gpu("sm_75", "float16"), Gpu("sm_80", "float16"), Gpu("sm_80", "bfloat16")]
NAME = "{0.arch}-{0.dtype}".format
TYPES = {"float16": np.dtype("float16"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
HALF_STEP = {"float16": 2**-11, "bfloat16": 2**-8}  # of the rounding of a result, relative
MARGIN = 2e-6  # of the cosines of two that may be exchanged: sums are float32
MATCHES = {
    "match": MatchShape(2, 8, 10, 24, (2, 2), 30),
    "match_odd": MatchShape(1, 13, 11, 40, (2, 2), 50),
    "match_odd_cells": MatchShape(2, 11, 7, 8, (3, 2), 20),
    "match_one_way": MatchShape(1, 9, 5, 72, (1, 2), 1),
    "match_all_leave": MatchShape(1, 6, 6, 16, (2, 2), 27),
    "match_large": MatchShape(1, 22, 24, 32, (2, 2), 264),  # more than a tile of each, and than a block of sources
}
EQUALS = MatchShape(1, 6, 6, 8, (2, 2), 13)
MERGES = {"merge": (2, 50, 24, 20), "merge_odd": (1, 37, 3, 36), "merge_wide": (1, 9, 520, 4)}  # batch, ..., merged


@pytest.fixture(scope="module", params=GPUS, ids=NAME)
def emulated(request):
    gpu = request.param
    kernels = {name: token_matching(shape, gpu) for name, shape in {**MATCHES, "equals": EQUALS}.items()}
    for name, shape in MERGES.items():
        batch, tokens, *_ = shape
        kernels[name] = merge_tokens(*shape, gpu)
        kernels[f"un{name}"] = unmerge_tokens(*shape, (1, batch, batch * tokens), gpu)
    with emulator(kernels, gpu) as module:
        yield gpu, module


def run(module, name, inputs, shape, dtype):
    result = tvm.runtime.tensor(np.full(shape, -1, dtype))
    module[name](*(tvm.runtime.tensor(value) for value in inputs), result)
    return result.numpy()


@pytest.mark.parametrize("name", sorted(MATCHES))
def test_matching(emulated, name):
    gpu, module = emulated
    shape = MATCHES[name]
    x = np.random.default_rng(0).standard_normal((shape.batch, shape.tokens, shape.channels)).astype(TYPES[gpu.dtype])
    slots = run(module, name, [x], (shape.batch, shape.tokens), "int32")
    check_match(slots, x.astype("float32"), shape, MARGIN)


def order(shape):
    """Return the tokens that are sources, as ``MatchShape.source`` numbers them."""
    return [int(shape.source(tvm.tirx.IntImm("int32", index))) for index in range(shape.sources)]


def test_of_equal_sources_the_first_leave_for_the_first_destination(emulated):
    gpu, module = emulated
    x = np.ones((1, EQUALS.tokens, EQUALS.channels), TYPES[gpu.dtype])
    (slots,) = run(module, "equals", [x], (1, EQUALS.tokens), "int32")
    taken = slots[order(EQUALS)].tolist()
    alone = range(EQUALS.destinations, EQUALS.tokens - EQUALS.merged)
    assert taken == [0] * EQUALS.merged + list(alone)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_tokens_without_a_direction_stay_in_bounds(emulated, value):
    gpu, module = emulated
    x = np.full((1, EQUALS.tokens, EQUALS.channels), value, TYPES[gpu.dtype])
    (slots,) = run(module, "equals", [x], (1, EQUALS.tokens), "int32")
    assert slots.min() >= 0 and slots.max() < EQUALS.tokens - EQUALS.merged


@pytest.mark.parametrize("name", sorted(MERGES))
def test_merging_and_parting(emulated, name):
    gpu, module = emulated
    batch, tokens, channels, merged = MERGES[name]
    rng, left, dtype = np.random.default_rng(0), tokens - merged, TYPES[gpu.dtype]
    slots = random_slots(rng, batch, tokens, left)
    x = rng.standard_normal((batch, tokens, channels)).astype(dtype)
    wide = x.astype("float64")
    means = np.stack([[wide[n][slots[n] == slot].mean(axis=0) for slot in range(left)] for n in range(batch)])
    found = run(module, name, [x, slots], means.shape, dtype)
    np.testing.assert_allclose(found.astype("float64"), means, rtol=HALF_STEP[gpu.dtype], atol=1e-6)
    added = [rng.standard_normal((rows, channels)).astype(dtype) for rows in (1, batch, batch * tokens)]
    given_back = run(module, f"un{name}", [found, slots, *added], (batch * tokens, channels), dtype)
    bias, embedding, residual = (value.astype("float64") for value in added)
    parted = np.stack([found[n][slots[n]] for n in range(batch)]).astype("float64")
    expected = (parted + bias + embedding[:, None]).reshape(-1, channels) + residual
    np.testing.assert_allclose(given_back.astype("float64"), expected, rtol=HALF_STEP[gpu.dtype], atol=1e-6)


@pytest.mark.parametrize("gpu", [*GPUS, Gpu("sm_90", "float16")], ids=NAME)
def test_kernels_of_sd15s_size_need_no_spills(tmp_path, gpu):
    functions = {
        "match": token_matching(MatchShape(2, 64, 64, 320, (2, 2), 2048), gpu),
        "merge": merge_tokens(2, 4096, 320, 2048, gpu),
        "unmerge": unmerge_tokens(2, 4096, 320, 2048, (8192,), gpu),
    }
    code = device_code(functions, gpu)
    assert spilled(code, gpu.arch, tmp_path) == [0] * len(code.launches)


def test_a_merged_unet_is_pytorchs(tmp_path, monkeypatch):
    """The torch module merges by indices of its own: of random features no two are as similar as rounding."""
    component, engine = emulate("unet", TokenMerging(0.5), tmp_path, monkeypatch)
    origins = {kernel.origin for kernel in engine.description.kernels.values()}
    assert {"tensor_matching", "merge_tokens", "unmerge_tokens"} < origins
    launches = engine.description.device.launches.items()
    (parting, *_) = (launch for symbol, launch in launches if symbol.startswith("unmerge_tokens"))
    assert parting.arguments.count("handle") == 4  # tokens, slots, the residual, the result
    assert min(verify(component, engine, "float16").psnr.values()) >= FLOOR["float16"]
