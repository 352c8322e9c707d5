"""Token merging against tomesd in eager PyTorch, and its own promises."""

import copy

import pytest
import tomesd
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tomesd.merge import bipartite_soft_matching_random2d

from models.random_checkpoint import random_checkpoint
from models.token_merging import (
    apply_token_merging,
    match_tokens,
    merge_tokens,
    require_attention,
    split_tokens,
    unmerge_tokens,
)
from utils.config import TokenMerging
from utils.errors import UserError


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def tokens_of(batch, height, width, channels, seed=0):
    return torch.randn(batch, height * width, channels, generator=torch.Generator().manual_seed(seed))


SIZES = st.tuples(st.integers(2, 13), st.integers(2, 13))
STRIDES = st.sampled_from([(2, 2), (1, 2), (4, 2), (3, 3)])


@settings(deadline=None, max_examples=80)
@given(SIZES, STRIDES, st.integers(1, 3), st.floats(0.01, 0.75), st.integers(0, 1000))
def test_merging_and_parting_are_tomesds(size, stride, batch, ratio, seed):
    (height, width), (sy, sx) = size, stride
    tokens = tokens_of(batch, height, width, 12, seed)
    destinations, sources = split_tokens(height, width, stride)
    merged = min(int(ratio * height * width), len(sources))
    if not merged or not len(destinations):
        return
    merge, unmerge = bipartite_soft_matching_random2d(tokens, width, height, sx, sy, merged, no_rand=True)
    slots = match_tokens(tokens, height, width, sy, sx, merged)
    ours, theirs = merge_tokens(tokens, slots, merged), merge(tokens)
    assert ours.shape == theirs.shape  # in another order
    assert torch.allclose(ours.sum(1), theirs.sum(1), atol=1e-4)
    assert torch.allclose(unmerge_tokens(ours, slots), unmerge(theirs), atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(SIZES, st.floats(0.05, 0.75))
def test_every_slot_is_taken_and_destinations_keep_theirs(size, ratio):
    height, width = size
    destinations, sources = split_tokens(height, width, (2, 2))
    merged = min(int(ratio * height * width), len(sources))
    if not merged:
        return
    (slots,) = match_tokens(tokens_of(1, height, width, 8), height, width, 2, 2, merged)
    assert slots.unique().tolist() == list(range(height * width - merged))
    assert slots[destinations].tolist() == list(range(len(destinations)))


UNETS = [
    (TokenMerging(0.5), (16, 16)),
    (TokenMerging(0.3, ("attn", "crossattn", "mlp"), 2), (16, 16)),
    (TokenMerging(0.75, max_downsample=2), (9, 13)),
    (TokenMerging(0.6, ("attn", "mlp"), 2, (4, 2)), (12, 20)),
]


@pytest.mark.parametrize(("merging", "size"), UNETS)
@pytest.mark.parametrize("batch", [1, 2])
def test_the_unet_is_tomesds(merging, size, batch):
    unet = random_checkpoint("tiny-sd2", 1).unet.eval()
    context = torch.randn(batch, 77, unet.config.cross_attention_dim)
    inputs = torch.randn(batch, 4, *size), torch.tensor([500.0]), context
    plain, theirs = unet(*inputs).sample, copy.deepcopy(unet)
    tomesd.apply_patch(
        theirs,
        merging.ratio,
        merging.max_downsample,
        *merging.stride[::-1],
        use_rand=False,
        **{f"merge_{part}": part in merging.parts for part in ("attn", "crossattn", "mlp")},
    )
    apply_token_merging(unet, merging, *size)
    expected, ours = theirs(*inputs).sample, unet(*inputs).sample
    assert (expected - ours).abs().max() < 1e-5 * expected.abs().max()
    assert (plain - ours).abs().max() > 1e-3 * plain.abs().max()


def test_ratio_zero_is_the_plain_model():
    unet = random_checkpoint("tiny-sd2", 1).unet.eval()
    inputs = torch.randn(2, 4, 16, 16), torch.tensor([500.0]), torch.randn(2, 77, unet.config.cross_attention_dim)
    plain = unet(*inputs).sample
    apply_token_merging(unet, TokenMerging(0.0, ("attn", "crossattn", "mlp"), 8), 16, 16)
    assert torch.equal(plain, unet(*inputs).sample)


def test_parameters_keep_their_names():
    unet = random_checkpoint("tiny", 1).unet
    before = [name for name, _ in unet.named_parameters()]
    apply_token_merging(unet, TokenMerging(0.5), 8, 8)
    assert [name for name, _ in unet.named_parameters()] == before


def test_a_model_without_attention_at_the_level_is_refused():
    unet = random_checkpoint("tiny", 1).unet
    unet.register_to_config(down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"])
    with pytest.raises(UserError, match=r"--apply-tome: no attention at level 1 .*--tome-max-downsample 2"):
        apply_token_merging(unet, TokenMerging(), 8, 8)
    with pytest.raises(UserError, match=r"--apply-tome: no attention at level 1"):
        require_attention(unet, 1)  # tomesd itself would merge nothing and say nothing
