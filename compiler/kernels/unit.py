"""What multiplies words: a unit of the CPU that adds products of pairs of bfloat16 numbers in float32.

A left operand is rows of 16 words, a right one blocks of words [2 sides][16 pairs][16 columns]; a result is 32 columns
wide and one or two times 16 rows high. Every unit reads the same memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import tvm.tirx.script.builder.ir as T

from compiler.kernels.tir import Value

SIDE = 16  # rows and columns of a quarter of a result
TILE = 2 * SIDE  # rows and columns of a result


@dataclass(frozen=True)
class Words:
    """An operand: the words of its parts, and where those of a step of the reduction begin, by step and part.

    Left words are [..., rows, 16] and ``at`` leads to the first row; right ones [..., 2, 16, 16], to the block.
    """

    parts: Sequence[Value]
    at: Callable[[Value, int], Sequence[Value]]


@dataclass(frozen=True)
class Product:
    """``count`` steps of a product.

    It has ``rows`` (1 or 2) blocks of 16 rows and goes to ``sums``, float32 [rows, 32], from row ``first`` on.
    ``fresh`` tells whether it begins with zero rather than with what is there. Two rows of the result are ``stride``
    rows of the left words apart.
    """

    rows: int
    sums: Value
    first: Value
    fresh: bool | Value
    count: Value
    left: Words
    right: Words
    stride: int = 1


class Unit(Protocol):
    """Writes the statements of one kernel's products."""

    def configure(self) -> None:
        """Prepare the unit; each parallel task does so before its first product."""

    def release(self) -> None:
        """Leave the unit, at the end of a task."""

    def accumulate(self, product: Product) -> None:
        """Add a product to its sums: the products of every two parts but those of the two low ones."""


def either(condition: bool | Value, then: Callable[[], None], otherwise: Callable[[], None]) -> None:
    """Write one of two statements where ``condition`` is known already, or both."""
    if isinstance(condition, bool):
        (then if condition else otherwise)()
        return
    with T.If(condition):
        with T.Then():
            then()
        with T.Else():
            otherwise()
