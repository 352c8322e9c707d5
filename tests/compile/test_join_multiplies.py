"""Multiplies of the same matrix become one whose shares are results of their own."""

import dataclasses

import pytest
import torch
from small_component import CPU, WITHOUT_UNIT, after, component_of, parity
from torch import nn

from compiler.gpu.machine import Gpu
from compiler.gpu.native import gpu_target
from compiler.graph import called_functions
from compiler.optimisations import enabled
from compiler.pipeline import gpu_front, run
from compiler.trace import trace
from models.checkpoint import load_checkpoint
from models.components import components

GPU = Gpu("sm_80", "float16")


class Projections(nn.Module):
    """Some multiplies of one matrix, as wide as ``widths`` say, each used in a way of its own."""

    def __init__(self, widths, bias=True):
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(64, width, bias=bias) for width in widths)

    def forward(self, x):
        return torch.cat([part(x) * (index + 1) for index, part in enumerate(self.parts)], dim=-1)


def component(widths, rows=70, bias=True):
    return component_of(Projections(widths, bias), torch.randn(2, rows, 64))


def multiplies(widths, cpu=CPU, disable=""):
    """Return the calls of multiplies, of any kernel."""
    module = after(component(widths), "dispatch", disable, cpu)
    return module["main"].script().count("matmul")


@pytest.mark.parametrize("cpu", [CPU, WITHOUT_UNIT])
@pytest.mark.parametrize(("widths", "calls"), [([64] * 3, 1), ([32] * 2, 1), ([64, 32, 64], 3), ([24] * 3, 3)])
def test_those_of_one_shape_in_whole_panels_are_joined(widths, calls, cpu):
    """The context's multiplies of all layers are as many as layers: these stay apart."""
    assert multiplies(widths, cpu) == calls
    assert multiplies(widths, cpu, "joined_multiplies") == len(widths)
    assert multiplies([64] * 4, cpu) == 4


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("cpu", [CPU, WITHOUT_UNIT])
@pytest.mark.parametrize("rows", [3, 70])
def test_every_share_is_right(rows, cpu, bias, tmp_path):
    joined = component([64] * 3, rows, bias)
    assert "split" not in after(joined, "dispatch", cpu=cpu)["main"].script()
    assert parity(joined, tmp_path, cpu=cpu).psnr["main"] >= 100


class Refused(nn.Module):
    """Four multiplies of one matrix, which stay apart, and then three of what they give."""

    def __init__(self):
        super().__init__()
        self.before, self.after = Projections([64] * 4), Projections([64] * 3)
        self.narrow = nn.Linear(256, 64)

    def forward(self, x):
        return self.after(torch.nn.functional.silu(self.narrow(self.before(x))))


def test_a_group_that_stays_apart_is_no_reason_for_the_next():
    module = after(component_of(Refused(), torch.randn(2, 70, 64)), "dispatch")
    assert module["main"].script().count("matmul") == 4 + 1 + 1


@pytest.mark.parametrize("name", ["text_encoder", "unet"])
def test_queries_keys_and_values_of_all_layers_are_joined_for_a_gpu(name):
    checkpoint = load_checkpoint("random:tiny")
    (found,) = (c for c in components(checkpoint, *checkpoint.size(None, None), 1) if c.name == name)
    function = found.functions[0]
    traced = trace(dataclasses.replace(found, functions=(function,)))

    def multiplies(disable: str) -> int:
        on = enabled(disable)
        *_, (_, module) = run(gpu_front(GPU, on, set()), traced.module, gpu_target(GPU), on, set())
        return sum(called.startswith("tensor_multiply") for called in called_functions(module[function.name]))

    layers = sum(key.endswith(("attn1.to_q.weight", "self_attn.q_proj.weight")) for key in traced.parameters)
    assert layers > 1
    assert multiplies("joined_multiplies") - multiplies("") == 2 * layers
