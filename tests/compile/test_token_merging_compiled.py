"""Merged blocks through the whole compiler: parity with PyTorch, and what becomes of the calls."""

import pytest
from small_component import CPU, WITHOUT_UNIT, after, parity

from compiler.kernels.plan import KERNEL
from models.components import components
from models.random_checkpoint import random_checkpoint
from utils.config import TokenMerging


def unet(merging, height=80, width=56):
    return components(random_checkpoint("tiny-sd2", 1), height, width, 1, merging)[1]


def kernels(module):
    return [str(f.attrs[KERNEL]) for _, f in module.functions_items() if f.attrs is not None and KERNEL in f.attrs]


@pytest.mark.parametrize(
    ("merging", "cpu"),
    [
        pytest.param(TokenMerging(0.5), CPU, marks=pytest.mark.long),
        (TokenMerging(0.75, ("attn", "crossattn", "mlp"), 2), CPU),
        (TokenMerging(0.3, ("attn", "mlp"), 8, (2, 3)), WITHOUT_UNIT),
    ],
)
def test_a_merged_unet_is_pytorchs(merging, cpu, tmp_path):
    """Of random features no two are as similar as rounding, so that both choose the same."""
    checked = parity(unet(merging), tmp_path, cpu=cpu)
    assert set(checked.psnr) == {"guided", "unguided"}


def test_ratio_zero_has_no_kernel_of_merging():
    found = kernels(after(unet(TokenMerging(0.0)), "dispatch"))
    assert found and not {"token_matching", "tile_matching", "merge_tokens", "unmerge_tokens"} & set(found)


def test_the_residual_is_added_where_tokens_are_parted():
    module = after(unet(TokenMerging(0.5)), "dispatch")
    found = kernels(module)
    assert {"merge_tokens", "unmerge_tokens"} <= set(found) and {"token_matching", "tile_matching"} & set(found)
    (parting, *_) = (f for _, f in module.functions_items() if f.attrs.get(KERNEL) == "unmerge_tokens")
    assert len(parting.params) == 4  # tokens, slots, the residual, the result
