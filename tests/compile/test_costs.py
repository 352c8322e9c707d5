"""FLOPs and bytes of kernels: exact where they can be worked out by hand, and those that PyTorch counts."""

import pytest
import torch
from small_component import after, block_component, component_of
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from compiler.costs import NORM, kernels
from models.checkpoint import load_checkpoint
from models.components import components


def costs(component, disable=""):
    """Return the kernels of a component's functions and their contexts."""
    module = after(component, "rest", disable)
    wanted = {name for function in component.functions for name in (function.name, f"{function.name}_context")}
    return kernels(module, [v.name_hint for v in module.get_global_vars() if v.name_hint in wanted])


def flops(found, function):
    """Return the FLOPs of a function with its context."""
    counts = ((k.flops, k.calls.get(name, 0)) for k in found.values() for name in (function, f"{function}_context"))
    return sum(flops * calls for flops, calls in counts)


def counted(component, function):
    """Return what PyTorch's counter says, which knows attention as two multiplies only."""
    inputs = [value for _, value in function.inputs]
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        component.module(*inputs)
    return counter.get_total_flops()


def only(found):
    """Return the one kernel that computes anything."""
    (kernel,) = (kernel for kernel in found.values() if kernel.flops)
    return kernel


@pytest.mark.parametrize("model", ["random:tiny", "demo"])
@pytest.mark.parametrize("name", ["unet", "vae_decoder"])
def test_flops_are_those_of_pytorchs_counter(model, name, request):
    checkpoint = load_checkpoint(str(request.getfixturevalue("demo_checkpoint")) if model == "demo" else model)
    part = next(part for part in components(checkpoint, *checkpoint.size(None, None), 1) if part.name == name)
    found = costs(part)
    for function in part.functions:
        assert flops(found, function.name) == pytest.approx(counted(part, function), rel=0.05)


@pytest.mark.parametrize("disable", ["", "all", "packed_weights,winograd,split_float32", "flash_attention"])
def test_flops_do_not_depend_on_the_kernels_that_are_chosen(disable):
    """Where the rule schedules an operator its loops are counted, those of norms, padding and the like with it."""
    block = block_component()
    found = costs(block, disable)
    for function in block.functions:
        assert flops(found, function.name) == pytest.approx(counted(block, function), rel=0.12)


def test_a_multiply():
    kernel = only(costs(component_of(nn.Linear(64, 96), torch.randn(5, 64))))
    assert kernel.flops == 2 * 5 * 64 * 96 and kernel.calls == {"main": 1}
    assert kernel.bytes == 4 * (5 * 64 + 64 * 96 + 5 * 96 + 96)  # the bias is added by it


def test_a_gated_multiply_counts_values_and_gates():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 256)

        def forward(self, x):
            value, gate = self.linear(x).chunk(2, dim=-1)
            return value * nn.functional.gelu(gate)

    kernel = only(costs(component_of(Gated(), torch.randn(5, 64))))
    assert kernel.flops == 2 * 5 * 64 * 256


@pytest.mark.parametrize("disable", ["", "winograd,split_float32"])
def test_a_convolution_is_the_direct_one(disable):
    convolution = component_of(nn.Conv2d(64, 32, 3, padding=1), torch.randn(1, 64, 12, 12))
    found = [kernel for kernel in costs(convolution, disable).values() if kernel.origin != "rule"]
    assert sum(kernel.flops for kernel in found) == 2 * 12 * 12 * 9 * 64 * 32


def test_an_upsampled_convolution_counts_its_pixels_and_reads_the_small_picture():
    module = nn.Sequential(nn.Conv2d(64, 64, 1), nn.Upsample(scale_factor=2.0), nn.Conv2d(64, 32, 3, padding=1))
    found = costs(component_of(module, torch.randn(1, 64, 6, 6)), "winograd")
    kernel = max(found.values(), key=lambda kernel: kernel.flops)
    assert kernel.flops == 2 * 12 * 12 * 9 * 64 * 32
    if kernel.origin == "tile_conv2d":
        assert kernel.bytes == 4 * (6 * 6 * 64 + 16 * 64 * 32 + 12 * 12 * 32 + 32), "four phases of 2x2 weights"


def test_a_norm():
    kernel = only(costs(component_of(nn.LayerNorm(24), torch.randn(7, 24))))
    assert kernel.flops == NORM * 7 * 24 and kernel.bytes == 4 * (2 * 7 * 24 + 2 * 24)


def test_a_table_of_embeddings_moves_only_what_is_read():
    found = costs(component_of(nn.Embedding(1000, 8), torch.arange(5)))
    moved = sum(kernel.bytes for kernel in found.values())
    assert 4 * 2 * 5 * 8 <= moved < 4 * 4 * 5 * 8 < 4 * 1000 * 8


def test_a_kernel_that_is_called_twice_is_counted_twice():
    module = nn.Sequential(nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU())
    found = costs(component_of(module, torch.randn(5, 64)))
    assert only(found).calls == {"main": 2} and flops(found, "main") == 2 * 2 * 5 * 64 * 64


def test_flops_of_full_size_are_no_32_bit_numbers():
    kernel = only(costs(component_of(nn.Linear(2048, 2048), torch.randn(1024, 2048))))
    assert kernel.flops == 2**33
