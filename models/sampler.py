"""What a sampler does between two calls of the UNet, as a module: for a loop that never leaves the GPU."""

from __future__ import annotations

import torch
from torch import nn

from models.assembly import Checkpoint
from models.components import Component, Function

LATENTS, OUTPUTS = 3, 4  # a sampler's step reads no more: dpmpp-2m of order 3, pndm


class Sampler(nn.Module):
    """Sums of latents and of what the UNet gave, each with a factor."""

    def forward(self, factors: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        """Return R sums, float32 [R B, C, h, w], one below the other.

        Args:
            factors: float32 [R, LATENTS + OUTPUTS G].
            tensors: LATENTS of float32 [B, C, h, w], then OUTPUTS of float32 [G B, C, h, w], of which each row of the
                batch of B counts as an array of its own.
        """
        latent = tensors[0]
        parts = torch.cat([tensor.reshape(-1, latent.numel()) for tensor in tensors])
        return (factors.unsqueeze(2) * parts).sum(1).reshape(-1, *latent.shape[1:])


def sampler(checkpoint: Checkpoint, height: int, width: int, batch_size: int) -> Component:
    """Return the sampler of pictures of ``height`` x ``width`` pixels, ``batch_size`` at once.

    Its functions give latents after a step, with guidance (G = 2) or without, and ``guided_input`` what the UNet is
    called with: the same sum twice.
    """
    shape = checkpoint.latent_channels, *checkpoint.latent_size(height, width)
    random = torch.Generator().manual_seed(0)

    def function(name: str, rows: int, guided: int) -> Function:
        sizes = [("latents", batch_size, LATENTS), ("output", guided * batch_size, OUTPUTS)]
        factors = torch.randn(1, LATENTS + OUTPUTS * guided, generator=random).repeat(rows, 1)
        inputs = [("factors", factors)]
        for name_, batch, count in sizes:
            inputs += [(f"{name_}{i}", torch.randn(batch, *shape, generator=random)) for i in range(count)]
        return Function(name, tuple(inputs))

    functions = function("guided", 1, 2), function("guided_input", 2, 2), function("unguided", 1, 1)
    return Component("sampler", Sampler().eval(), functions)
