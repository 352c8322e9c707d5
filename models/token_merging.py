"""Token merging: similar tokens go through a layer as one.

A token in each cell of a picture is a destination, the others are sources. The sources most similar to a destination
(bipartite soft matching) are averaged into it before a layer and get a copy of its result after it. A matching is told
by the slot of each token in the shorter sequence: destinations come first, then the sources that stay alone.
Source: Bolya and Hoffman, Token Merging for Fast Stable Diffusion (CVPRW 2023); the choices are those of tomesd with
``use_rand=False``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from utils.config import TokenMerging
from utils.errors import UserError

PARTS = {"attn": "attn1", "crossattn": "attn2", "mlp": "ff"}  # of a transformer block, by the names of tomesd


def split_tokens(height: int, width: int, stride: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the indices of destinations and of sources, int64, among tokens of a picture of ``height`` x ``width``.

    A destination is the first token of its cell. What is beyond the last whole cell is a source.
    """
    is_destination = torch.zeros(height, width, dtype=torch.bool)
    is_destination[: height // stride[0] * stride[0] : stride[0], : width // stride[1] * stride[1] : stride[1]] = True
    flat = is_destination.flatten()
    return flat.nonzero()[:, 0], (~flat).nonzero()[:, 0]


@torch.library.custom_op("tvmerge::match_tokens", mutates_args=())
def match_tokens(
    tokens: torch.Tensor, height: int, width: int, stride_y: int, stride_x: int, merged: int
) -> torch.Tensor:
    """Return the slots of tokens [B, height * width, C] after ``merged`` sources went to their destinations, int32.

    Similarity is the cosine. Of equally similar sources or destinations either may be taken.
    """
    destinations, sources = split_tokens(height, width, (stride_y, stride_x))
    unit = tokens / tokens.norm(dim=-1, keepdim=True)
    best, nearest = (unit[:, sources] @ unit[:, destinations].transpose(-1, -2)).max(dim=-1)
    leaves = torch.zeros_like(best, dtype=torch.bool)
    leaves.scatter_(1, best.topk(merged, dim=-1).indices, True)
    alone = len(destinations) + (~leaves).cumsum(dim=-1) - 1
    slots = torch.empty(tokens.shape[:2], dtype=torch.int64)
    slots[:, destinations] = torch.arange(len(destinations))
    slots[:, sources] = torch.where(leaves, nearest, alone)
    return slots.int()


@match_tokens.register_fake
def _(tokens: torch.Tensor, *_settings: int) -> torch.Tensor:
    return tokens.new_empty(tokens.shape[:2], dtype=torch.int32)


@torch.library.custom_op("tvmerge::merge_tokens", mutates_args=())
def merge_tokens(tokens: torch.Tensor, slots: torch.Tensor, merged: int) -> torch.Tensor:
    """Return the mean of the tokens [B, N, C] of each slot, [B, N - merged, C]."""
    batch, count, channels = tokens.shape
    index = slots.long()
    sums = tokens.new_zeros(batch, count - merged, channels)
    sums.scatter_add_(1, index[..., None].expand_as(tokens), tokens)
    sizes = tokens.new_zeros(batch, count - merged).scatter_add_(1, index, torch.ones_like(index, dtype=tokens.dtype))
    return sums / sizes[..., None]


@merge_tokens.register_fake
def _(tokens: torch.Tensor, _slots: torch.Tensor, merged: int) -> torch.Tensor:
    batch, count, channels = tokens.shape
    return tokens.new_empty(batch, count - merged, channels)


@torch.library.custom_op("tvmerge::unmerge_tokens", mutates_args=())
def unmerge_tokens(tokens: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Return the token [B, M, C] in the slot [B, N] of each token, [B, N, C]."""
    return torch.gather(tokens, 1, slots.long()[..., None].expand(-1, -1, tokens.shape[-1]))


@unmerge_tokens.register_fake
def _(tokens: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    return tokens.new_empty(*slots.shape, tokens.shape[-1])


class _Block:
    """The matching of a transformer block: made when the block is entered, used by its parts."""

    def __init__(self, merging: TokenMerging, height: int, width: int) -> None:
        self.merging, self.size = merging, (height, width)
        self.slots: torch.Tensor | None = None
        self.merged = 0

    def enter(self, _block: torch.nn.Module, arguments: tuple, named: dict[str, Any]) -> None:
        """Match the tokens that a block is given."""
        tokens = arguments[0] if arguments else named["hidden_states"]
        count, self.slots = tokens.shape[1], None
        downsample = math.ceil(math.sqrt(self.size[0] * self.size[1] // count))
        if downsample > self.merging.max_downsample:
            return
        height, width = (math.ceil(extent / downsample) for extent in self.size)
        destinations = (height // self.merging.stride[0]) * (width // self.merging.stride[1])
        self.merged = min(int(count * self.merging.ratio), count - destinations) if destinations else 0
        if self.merged:
            self.slots = match_tokens(tokens, height, width, *self.merging.stride, self.merged)

    def around(self, forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """Return ``forward`` with tokens merged before and parted after."""

        def merged(tokens: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
            if self.slots is None:
                return forward(tokens, *arguments, **named)
            result = forward(merge_tokens(tokens, self.slots, self.merged), *arguments, **named)
            return unmerge_tokens(result, self.slots)

        return merged


def _levels(unet: UNet2DConditionModel) -> list[int]:
    """Return by how much each level with attention is smaller than the latent, 1 for those of its own size."""
    kinds = unet.config.down_block_types
    found = [2**level for level, kind in enumerate(kinds) if "CrossAttn" in kind]
    return [*found, 2 ** (len(kinds) - 1)] if "CrossAttn" in str(unet.config.mid_block_type) else found


def require_attention(unet: UNet2DConditionModel, max_downsample: int) -> None:
    """Refuse a model in which nothing would be merged.

    Raises:
        UserError: it has no attention at the levels that are asked for.
    """
    levels = _levels(unet)
    if not levels or min(levels) > max_downsample:
        deeper = f"; the largest needs --tome-max-downsample {min(levels)}" if levels else ""
        raise UserError(f"--apply-tome: no attention at level {max_downsample} of this model{deeper}")


def apply_token_merging(unet: UNet2DConditionModel, merging: TokenMerging, height: int, width: int) -> None:
    """Have ``unet`` merge tokens from now on, for latents of ``height`` x ``width``. Its parameters stay what they are.

    Raises:
        UserError: it has no attention at the levels that are asked for.
    """
    require_attention(unet, merging.max_downsample)
    for block in (module for module in unet.modules() if isinstance(module, BasicTransformerBlock)):
        matching = _Block(merging, height, width)
        block.register_forward_pre_hook(matching.enter, with_kwargs=True)
        for part in merging.parts:
            module = getattr(block, PARTS[part])
            module.forward = matching.around(module.forward)
