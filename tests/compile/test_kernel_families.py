"""Every kernel that asks for no special unit runs here, whatever this CPU has: none is left to other machines."""

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from kernel_runner import machine, run_kernel
from small_component import WITHOUT_UNIT, block_component, component_of, parity
from torch import nn

from compiler import kernels
from compiler.kernels.token_matching import MatchShape, token_matching
from compiler.kernels.token_merging import merge_tokens, unmerge_tokens

OF_UNITS = ("tile_", "upsampled")  # beginnings of the modules whose kernels multiply bfloat16 words
HELPERS = ("tir", "tunable")  # modules that make kernels of others


def makers() -> dict[str, Callable]:
    """Return the functions that make a kernel, by module and name."""
    found = {}
    for info in pkgutil.iter_modules(kernels.__path__):
        module = importlib.import_module(f"{kernels.__name__}.{info.name}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            own = function.__module__ == module.__name__ and not name.startswith("_")
            if own and str(inspect.signature(function).return_annotation).endswith("PrimFunc"):
                found[f"{info.name}.{name}"] = function
    return {name: function for name, function in found.items() if not name.startswith(HELPERS)}


@contextmanager
def called() -> Iterator[set]:
    """Collect the code of every function that is called meanwhile."""
    codes: set = set()
    sys.setprofile(lambda frame, event, _argument: codes.add(frame.f_code) if event == "call" else None)
    try:
        yield codes
    finally:
        sys.setprofile(None)


def run_token_merging() -> None:
    random, machine_ = np.random.default_rng(0), machine(16, 32)
    x = random.standard_normal((1, 36, 8)).astype(np.float32)
    slots = run_kernel(token_matching(MatchShape(1, 6, 6, 8, (2, 2), 13), machine_), [x], [1, 36], "int32")
    merged = run_kernel(merge_tokens(1, 36, 8, 13, machine_), [x, slots], [1, 23, 8])
    parted = run_kernel(unmerge_tokens(1, 36, 8, 13, (), machine_), [merged, slots], [36, 8])
    np.testing.assert_array_equal(parted, merged[0][slots[0]])


def test_all_that_need_no_unit_run_here(tmp_path):
    """Each is made and run, and what it computes agrees with PyTorch."""
    wanted = {name: function.__code__ for name, function in makers().items() if not name.startswith(OF_UNITS)}
    winograd = replace(WITHOUT_UNIT, machine=replace(WITHOUT_UNIT.machine, winograd_tile=4))
    convolution = component_of(nn.Conv2d(32, 64, 3, padding=1), torch.randn(2, 32, 14, 9))
    others = nn.Sequential(nn.Conv2d(32, 32, 3, stride=2), nn.Conv2d(32, 3, 3, padding=1))
    with called() as codes:
        assert min(parity(block_component(), tmp_path / "block", cpu=WITHOUT_UNIT).psnr.values()) >= 60
        parity(block_component(), tmp_path / "softmax", "flash_attention", WITHOUT_UNIT)
        parity(convolution, tmp_path / "winograd", cpu=winograd)
        parity(component_of(others, torch.randn(2, 32, 14, 9)), tmp_path / "others", cpu=WITHOUT_UNIT)
        run_token_merging()
    assert sorted(name for name, code in wanted.items() if code not in codes) == [] and len(wanted) >= 9
