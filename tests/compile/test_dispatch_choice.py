"""Which kernel an operator gets, by shape, machine and flags, and that the result is right with it."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
import tvm
from kernel_runner import UNITS, word_machine
from small_component import CPU, WITHOUT_UNIT, after, component_of, parity
from torch import nn

from compiler.kernels.conv2d import ConvShape
from compiler.kernels.plan import KERNEL
from compiler.kernels.register_tile import Machine
from compiler.kernels.tile_conv2d import cost
from compiler.optimisations import enabled
from compiler.target import resolve_target
from utils.errors import UserError

needs_tiles = pytest.mark.skipif(not CPU.machine.unit, reason="this CPU has no AMX")


class Upsampled(nn.Module):
    """Two convolutions with nearest upsampling between them."""

    def __init__(self, channels=64):
        super().__init__()
        self.before, self.after = nn.Conv2d(32, channels, 3, padding=1), nn.Conv2d(channels, 32, 3, padding=1)

    def forward(self, x):
        return self.after(nn.functional.interpolate(self.before(x), scale_factor=2.0))


class Multiplied(nn.Module):
    """A multiply of as many rows as the input has."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(320, 320)

    def forward(self, x):
        return self.linear(x)


def kernels(module: tvm.IRModule) -> Counter:
    """Count the functions of a module by kernel, those of the rule as None."""
    functions = (f for _, f in module.functions_items() if isinstance(f, tvm.tirx.PrimFunc))
    return Counter(str(f.attrs[KERNEL]) if KERNEL in f.attrs else None for f in functions)


@needs_tiles
def test_upsampling_is_a_way_to_read(tmp_path):
    component = component_of(Upsampled(), torch.randn(2, 32, 7, 9))
    found = kernels(after(component, "dispatch"))
    assert found["tile_conv2d"] == 2
    assert "resize2d" not in after(component, "dispatch").script()
    assert parity(component, tmp_path).psnr["main"] >= 100


@pytest.mark.parametrize("size", [(7, 9), (24, 40)])
def test_upsampling_is_a_way_to_read_without_tiles(size, tmp_path):
    """Winograd's kernel takes it; without it the picture is doubled in memory."""
    component = component_of(Upsampled(), torch.randn(2, 32, *size))
    module = after(component, "dispatch", cpu=WITHOUT_UNIT)
    assert "resize2d" not in module.script()
    assert sum(count for name, count in kernels(module).items() if name and name.startswith("winograd")) == 2
    assert "resize2d" in after(component, "dispatch", "winograd", cpu=WITHOUT_UNIT).script()
    assert parity(component, tmp_path, cpu=WITHOUT_UNIT).psnr["main"] >= 100


def test_few_outputs_have_a_kernel_of_their_own(tmp_path):
    component = component_of(nn.Conv2d(64, 3, 3, padding=1), torch.randn(1, 64, 9, 12))
    assert kernels(after(component, "dispatch", cpu=WITHOUT_UNIT))["narrow_conv2d"] == 1
    assert "narrow_conv2d" not in kernels(after(component, "dispatch", "packed_weights", cpu=WITHOUT_UNIT))
    assert parity(component, tmp_path, cpu=WITHOUT_UNIT).psnr["main"] >= 100


@pytest.mark.parametrize(("rows", "kernel"), [(2, "matmul"), (400, "tile_matmul")])
@needs_tiles
def test_few_rows_do_not_fill_a_tile(rows, kernel):
    assert kernels(after(component_of(Multiplied(), torch.randn(rows, 320)), "dispatch"))[kernel] == 1


def test_the_estimate_counts_dropped_columns_and_half_empty_tiles():
    machine = Machine(16, 32, 2, unit="amx")

    def estimate(batch, side, padding=1, parts=2):
        shape = ConvShape(batch, side, side, 64, 64, (3, 3), (1, 1), (padding,) * 4)
        return cost(shape, replace(machine, parts=parts)) / shape.multiplies

    assert estimate(1, 1) > 10 * estimate(1, 64)
    assert estimate(1, 8) > estimate(1, 64)
    assert estimate(1, 64, parts=1) < estimate(1, 64)
    assert estimate(1, 64) < 1 < estimate(1, 1)


@pytest.mark.skipif(("amx", 2) not in UNITS, reason="this CPU has no unit that splits float32")
def test_winograd_in_tiles_where_the_picture_is_large_enough(tmp_path):
    large, small = (component_of(nn.Conv2d(320, 320, 3, padding=1), torch.randn(2, 320, n, n)) for n in (24, 8))
    assert kernels(after(large, "dispatch"))["tile_winograd"] == 1 == kernels(after(small, "dispatch"))["tile_conv2d"]
    assert "tile_winograd" not in kernels(after(large, "dispatch", "winograd"))
    assert parity(large, tmp_path).psnr["main"] >= 90


@pytest.mark.parametrize("tile", [2, 4, 6])
def test_winograd_tile_is_what_the_flag_says(tile, tmp_path):
    cpu = replace(CPU, machine=replace(CPU.machine, winograd_tile=tile))
    component = component_of(Upsampled(), torch.randn(2, 32, 7, 9))
    assert kernels(after(component, "dispatch", cpu=cpu))[f"winograd_{tile}"] == 2
    assert parity(component, tmp_path, cpu=cpu).psnr["main"] >= 60


@pytest.mark.parametrize("unit", [name for name, parts in UNITS if parts == 1])
def test_bfloat16_halves_the_weights(unit, tmp_path):
    cpu = replace(CPU, machine=word_machine((unit, 1)))
    component = component_of(Upsampled(), torch.randn(2, 32, 7, 9))
    measured = parity(component, tmp_path, cpu=cpu, dtype="bfloat16").psnr["main"]
    assert 35 <= measured < 80
    words = [line for line in after(component, "dispatch", cpu=cpu).script().splitlines() if "uint32" in line]
    assert words


def test_bfloat16_needs_a_unit_and_what_uses_it():
    with pytest.raises(UserError, match="--dtype bfloat16: the target has neither AMX"):
        resolve_target('{"kind": "llvm", "mcpu": "haswell"}', "bfloat16")
    with pytest.raises(UserError, match="needs layout and packed_weights and split_float32"):
        enabled("split_float32", "bfloat16")
    assert enabled("fusion", "bfloat16")["split_float32"]


class QuickGelu(nn.Module):
    """A multiply and CLIP's activation, or something like it."""

    def __init__(self, factor):
        super().__init__()
        self.linear, self.factor = nn.Linear(32, 64), factor

    def forward(self, x):
        x = self.linear(x)
        return x * torch.sigmoid(self.factor * x)


@pytest.mark.parametrize(("factor", "absorbed"), [(1.702, True), (1.5, False)])
@pytest.mark.parametrize("cpu", [CPU, WITHOUT_UNIT])
def test_quick_gelu_is_absorbed_and_its_likes_are_not(factor, absorbed, cpu, tmp_path):
    component = component_of(QuickGelu(factor), torch.randn(1, 7, 32, generator=torch.Generator().manual_seed(0)))
    text = after(component, "dispatch", cpu=cpu).script()
    assert ("R.sigmoid" not in text) == absorbed
    assert "R.sigmoid" in after(component, "dispatch", "fused_gelu", cpu).script()
    parity(component, tmp_path, cpu=cpu)
