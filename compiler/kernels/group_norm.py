"""GroupNorm, with SiLU where it follows, over NHWC in two passes over memory.

The first pass sums values and squares of each channel, relative to its first pixel so that a large mean costs no
digits; the sums of a group are then joined (Chan, Golub and LeVeque, Algorithms for computing the sample variance,
1983). The second pass scales, shifts and activates. Source: Wu and He, Group Normalization (2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tvm.tirx.script.builder.ir as T
from tvm import tirx

from compiler.kernels.activation import ACTIVATIONS
from compiler.kernels.register_tile import Machine
from compiler.kernels.sources import Sources
from compiler.kernels.tiling import choice
from compiler.kernels.tir import Value, Vectors, argument, prim_func


@dataclass(frozen=True)
class Tiling:
    """Stripes of pixels per core, and vectors at most that are activated in lockstep."""

    stripes: int = choice(4, 1, 2, 8, 16)
    together: int = choice(4, 1, 2, 8)


@dataclass(frozen=True)
class GroupNormShape:
    """Batch, pixels of a picture, channels, groups, and the epsilon added to the variance."""

    batch: int
    pixels: int
    channels: int
    groups: int
    epsilon: float


class _GroupNorm:
    def __init__(
        self,
        shape: GroupNormShape,
        activation: str | None,
        machine: Machine,
        widths: Sequence[int],
        tiling: Tiling,
    ) -> None:
        self.shape, self.activation, self.tiling = shape, activation, tiling
        self.sources = Sources(widths or [shape.channels])
        lanes = max(d for d in range(1, machine.lanes + 1) if all(width % d == 0 for width in self.sources.widths))
        self.v = Vectors(lanes)
        self.stripes = min(tiling.stripes * machine.cores, shape.pixels)
        self.rows = -(-shape.pixels // self.stripes)

    def body(self) -> None:
        """Declare the arguments and run the passes."""
        s = self.shape
        self.sources.declare((s.batch, s.pixels))
        self.gamma, self.beta = argument("gamma", (s.channels,)), argument("beta", (s.channels,))
        self.y = argument("y", (s.batch, s.pixels, s.channels))
        self.sums = T.alloc_buffer((s.batch, self.stripes, 2, s.channels), "float32", layout=None)
        self.affine = T.alloc_buffer((s.batch, 2, s.channels), "float32", layout=None)
        with T.parallel(s.batch * self.stripes) as task:
            self._sum(T.floordiv(task, self.stripes), T.floormod(task, self.stripes))
        with T.parallel(s.batch * s.groups) as task:
            self._join(T.floordiv(task, s.groups), T.floormod(task, s.groups))
        with T.parallel(s.batch * self.stripes) as task:
            self._apply(T.floordiv(task, self.stripes), T.floormod(task, self.stripes))

    def _pixels(self, stripe: Value) -> Value:
        return T.serial(stripe * self.rows, T.min(self.shape.pixels, stripe * self.rows + self.rows))

    def _sum(self, n: Value, stripe: Value) -> None:
        v, lanes = self.v, self.v.lanes
        with T.serial(self.shape.channels // lanes) as c:
            for kind in range(2):
                v.store(self.sums, v.all(0.0), n, stripe, kind, c * lanes)
        with self._pixels(stripe) as pixel:
            for source, first, end in self.sources.spans():
                with T.serial((end - first) // lanes) as vector:
                    here, c = vector * lanes, first + vector * lanes
                    x = T.bind(v.load(source, n, pixel, here) - v.load(source, n, 0, here))
                    v.store(self.sums, v.load(self.sums, n, stripe, 0, c) + x, n, stripe, 0, c)
                    v.store(self.sums, v.load(self.sums, n, stripe, 1, c) + x * x, n, stripe, 1, c)

    def _join(self, n: Value, group: Value) -> None:
        """Turn the sums of a group into its channels' scale and shift."""
        s = self.shape
        width = s.channels // s.groups
        pixels, zero = T.float32(s.pixels), T.float32(0)
        state = T.alloc_buffer((2,), "float32", scope="local", layout=None)  # mean, sum of squared differences
        for index in range(2):
            T.buffer_store(state, zero, [index])

        def channel(c: Value) -> tuple[Value, Value]:
            """Add the stripes up; the sums of stripe 0 hold the channel's totals afterwards."""
            with T.serial(1, self.stripes) as stripe:
                for kind in range(2):
                    total = self.sums[n, 0, kind, c] + self.sums[n, stripe, kind, c]
                    T.buffer_store(self.sums, total, [n, 0, kind, c])
            return self.sources.at(n, 0, c) + self.sums[n, 0, 0, c] / pixels, self.sums[n, 0, 1, c]

        with T.serial(width) as i:
            mean, _ = channel(group * width + i)
            T.buffer_store(state, state[0] + mean / T.float32(width), [0])
        with T.serial(width) as i:
            c = group * width + i
            total = T.bind(self.sums[n, 0, 0, c])
            away = T.bind(self.sources.at(n, 0, c) + total / pixels - state[0])
            spread = self.sums[n, 0, 1, c] - total * total / pixels + pixels * away * away
            T.buffer_store(state, state[1] + T.max(spread, zero), [1])
        inverse = T.bind(T.float32(1) / T.sqrt(state[1] / T.float32(width * s.pixels) + T.float32(s.epsilon)))
        with T.serial(width) as i:
            c = group * width + i
            T.buffer_store(self.affine, self.gamma[c] * inverse, [n, 0, c])
            T.buffer_store(self.affine, self.beta[c] - state[0] * inverse * self.gamma[c], [n, 1, c])

    def _apply(self, n: Value, stripe: Value) -> None:
        v, lanes = self.v, self.v.lanes
        with self._pixels(stripe) as pixel:
            for source, first, end in self.sources.spans():
                vectors = (end - first) // lanes
                together = max(d for d in range(1, self.tiling.together + 1) if vectors % d == 0)
                with T.serial(vectors // together) as block:
                    starts = [(block * together + i) * lanes for i in range(together)]
                    values = [
                        T.bind(
                            v.load(source, n, pixel, c) * v.load(self.affine, n, 0, first + c)
                            + v.load(self.affine, n, 1, first + c)
                        )
                        for c in starts
                    ]
                    if self.activation is not None:
                        values = ACTIVATIONS[self.activation](v, values)
                    for c, value in zip(starts, values, strict=True):
                        v.store(self.y, value, n, pixel, first + c)


def group_norm(
    shape: GroupNormShape,
    activation: str | None,
    machine: Machine,
    widths: Sequence[int] = (),
    tiling: Tiling = Tiling(),
) -> tirx.PrimFunc:
    """Return GroupNorm and activation as a function of x [N, pixels, C], gamma [C], beta [C] and y.

    With ``widths`` x is several arguments [N, pixels, widths[i]], whose channels follow each other.
    """
    return prim_func(_GroupNorm(shape, activation, machine, widths, tiling).body)
