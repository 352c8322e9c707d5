"""Sums of arrays that lie elsewhere, which a sampler computes with as if they were arrays.

A sampler's step is linear in what the model gave, in x and in noise. Run once with these in their place, it tells the
factors of every step, before the first is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
