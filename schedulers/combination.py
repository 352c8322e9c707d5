"""Sums of arrays that lie elsewhere, which a sampler computes with as if they were arrays.

A sampler's step is linear in what the model gave, in x and in noise. Run once with these in their place, it tells the
factors of every step, before the first is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from schedulers.base import Scheduler

Key = tuple[str, int, int]  # what is combined: its kind, the step, and the part of the batch that it is


class Combination:
    """A linear combination: ``terms`` has a factor for each array, which are all of one shape."""

    __array_ufunc__ = None  # NumPy's numbers then leave it to this class to be multiplied
    __slots__ = ("shape", "terms")

    def __init__(self, terms: Mapping[Key, float], shape: tuple[int, ...]) -> None:
        self.terms, self.shape = dict(terms), shape

    def __add__(self, other: Combination) -> Combination:
        terms = dict(self.terms)
        for key, factor in other.terms.items():
            terms[key] = terms.get(key, 0.0) + factor
        return Combination(terms, self.shape)

    def __sub__(self, other: Combination) -> Combination:
        return self + other * -1.0

    def __mul__(self, factor: Any) -> Combination:
        return Combination({key: value * float(factor) for key, value in self.terms.items()}, self.shape)

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> Combination:
        return self * (1.0 / float(divisor))


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
