"""Multiplies of the same matrix become one whose shares are results of their own."""

import pytest
import torch
from small_component import CPU, WITHOUT_UNIT, after, component_of, parity
from torch import nn


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
