"""All steps of a linear sampler before the first is made, as factors of what there will be."""

from __future__ import annotations

from dataclasses import dataclass

from schedulers.base import Scheduler
from schedulers.combination import Combination


@dataclass(frozen=True)
class Move:
    """One step: what the UNet sees, and x after it."""

    seen: Combination
    after: Combination


def moves(scheduler: Scheduler, guidance_scale: float | None, shape: tuple[int, ...]) -> list[Move]:
    """Return the steps that a linear sampler will make of latents of ``shape``; None is no guidance.

    With guidance, part 0 of the UNet's output is without the prompt, part 1 with it. Kinds are x, output and noise.
    """
    parts = [1.0] if guidance_scale is None else [1 - guidance_scale, guidance_scale]
    planned = []
    for i in range(len(scheduler.timesteps)):
        x = Combination({("x", i, 0): 1.0}, shape)
        output = Combination({("output", i, part): factor for part, factor in enumerate(parts)}, shape)
        noise = Combination({("noise", i, 0): 1.0}, shape)
        seen = scheduler.scale_model_input(x, i)
        planned.append(Move(seen, scheduler.step(output, i, x, lambda _shape, drawn=noise: drawn)))
    return planned
