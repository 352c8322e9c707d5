"""Winograd's minimal filtering F(m, 3): its matrices, and how vectors are multiplied by them with few instructions.

Sources: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (2015); the transforms follow Cook and Toom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import tvm.tirx.script.builder.ir as T

from compiler.kernels.tir import Value, Vectors

POINTS = (0, 1, -1, 2, -2, Fraction(1, 2), Fraction(-1, 2), 4, -4)

Matrix = list[list[float]]


def matrices(m: int) -> tuple[Matrix, Matrix, Matrix]:
    """Return A^T [m, m + 2], G [m + 2, 3] and B^T [m + 2, m + 2] of F(m, 3), so that y = A^T ((G g) * (B^T d))."""
    points = [Fraction(p) for p in POINTS[: m + 1]]
    size = m + 2

    def product(skipped: int | None) -> list[Fraction]:
        """Return the coefficients of the product of (x - p) over the points, lowest power first."""
        coefficients = [Fraction(1)]
        for index, p in enumerate(points):
            if index != skipped:
                shifted, scaled = [Fraction(0), *coefficients], [*(-p * c for c in coefficients), Fraction(0)]
                coefficients = [a + b for a, b in zip(shifted, scaled, strict=True)]
        return coefficients + [Fraction(0)] * (size - len(coefficients))

    def norm(j: int) -> Fraction:
        value = Fraction(1)
        for index, p in enumerate(points):
            if index != j:
                value *= points[j] - p
        return value

    a = [[*(p**i for p in points), Fraction(i == m - 1)] for i in range(m)]
    g = [[points[j] ** k / norm(j) for k in range(3)] for j in range(m + 1)] + [[Fraction(0), Fraction(0), Fraction(1)]]
    b = [product(j) for j in range(m + 1)] + [product(None)]
    return tuple([[float(x) for x in row] for row in matrix] for matrix in (a, g, b))  # type: ignore[return-value]


@dataclass(frozen=True)
class Filter:
    """F(m, 3) in one direction: A^T [m, products], G [products, 3] and B^T [products, reads].

    A tile of ``m`` results reads ``reads`` pixels, and the next tile begins ``step`` pixels further.
    """

    at: Matrix
    g: Matrix
    bt: Matrix
    step: int

    @property
    def products(self) -> int:
        """Products of a tile in one direction."""
        return len(self.g)

    @property
    def reads(self) -> int:
        """Pixels that a tile reads in one direction."""
        return len(self.bt[0])


def minimal_filter(m: int, upsample: int = 1) -> Filter:
    """Return F(m, 3), which may read an input that is upsampled ``upsample`` times on the way and padded by one.

    Pixels of an upsampled input are equal in groups, so the columns of B^T that meet the same pixel are added up. The
    row of the point -1 vanishes if the input is doubled, and its product is left out: 25 products for 16 pixels.
    ``m`` has to be a multiple of ``upsample``.
    """
    at, g, bt = matrices(m)
    if upsample == 1:
        return Filter(at, g, bt, m)
    reads = m // upsample + 2
    sums = [[0.0] * reads for _ in bt]
    for total, row in zip(sums, bt, strict=True):
        for pixel, factor in enumerate(row):
            total[(pixel - 1) // upsample + 1] += factor
    kept = [index for index, row in enumerate(sums) if any(row)]
    return Filter(
        [[row[index] for index in kept] for row in at],
        [g[index] for index in kept],
        [sums[index] for index in kept],
        m // upsample,
    )


def transform(v: Vectors, matrix: Sequence[Sequence[float]], values: Sequence[Value]) -> list[Value]:
    """Return ``matrix`` times a column of vectors.

    The points of the filter come in pairs p and -p. So two columns are alike but for signs, and are read as a sum and a
    difference; or two rows are, and share the part where they agree and the part where they differ.
    """
    rows, columns = [list(row) for row in matrix], list(values)
    for i, j in _pairs(list(zip(*rows, strict=True))):
        columns[i], columns[j] = T.bind(columns[i] + columns[j]), T.bind(columns[i] - columns[j])
        for row in rows:
            row[i], row[j] = (row[i], 0.0) if row[i] == row[j] else (0.0, row[i])
    found: list[Value] = [None] * len(rows)
    for i, j in _pairs(rows):
        agreeing = [a if a == b else 0.0 for a, b in zip(rows[i], rows[j], strict=True)]
        differing = [a if a != b else 0.0 for a, b in zip(rows[i], rows[j], strict=True)]
        even, odd = combine(v, agreeing, columns), combine(v, differing, columns)
        found[i], found[j] = T.bind(even + odd), T.bind(even - odd)
    return [combine(v, row, columns) if value is None else value for row, value in zip(rows, found, strict=True)]


def _pairs(lines: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """Return the pairs of lines that are alike but for signs, some of which agree and some of which differ."""
    found: list[tuple[int, int]] = []
    for i, first in enumerate(lines):
        for j in range(i + 1, len(lines)):
            both = [(a, b) for a, b in zip(first, lines[j], strict=True) if a or b]
            alike = len(both) > 2 and all(abs(a) == abs(b) for a, b in both)
            signs = {a == b for a, b in both}
            if alike and len(signs) == 2 and not any({i, j} & set(pair) for pair in found):
                found.append((i, j))
    return found


def combine(v: Vectors, row: Sequence[float], values: Sequence[Value]) -> Value:
    """Return the sum of ``row[i] values[i]`` without multiplications by 0 and 1."""
    total = None
    for factor, value in sorted(zip(row, values, strict=True), key=lambda term: term[0] < 0):
        if factor == 0:
            continue
        term = value if abs(factor) == 1 else v.all(abs(factor)) * value
        if total is None:
            total = term if factor > 0 else v.all(0.0) - term
        else:
            total = total + term if factor > 0 else total - term
    return T.bind(v.all(0.0) if total is None else total)
