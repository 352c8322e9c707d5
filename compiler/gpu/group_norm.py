"""GroupNorm, with SiLU where it follows, NHWC in 16 bits: a block for each group of a picture, sums in float32.

The mean comes first and then the squares of what differs from it, so that a large mean costs no digits; the group is
read three times, of which all but the first find it in cache. Source: Wu and He, Group Normalization (2018).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tvm.tirx.script.builder.ir as T
from tvm import tirx

from compiler.gpu.machine import Gpu
from compiler.gpu.threads import WARP, Scalars, grid, join_lanes, registers, shared, synchronise
from compiler.kernels.activation import ACTIVATIONS
from compiler.kernels.group_norm import GroupNormShape
from compiler.kernels.sources import Sources
from compiler.kernels.tir import Value, argument, prim_func

THREADS = 256


class _GroupNorm:
    def __init__(self, shape: GroupNormShape, activation: str | None, gpu: Gpu, widths: Sequence[int]) -> None:
        self.shape, self.activation, self.dtype = shape, activation, gpu.dtype
        self.sources = Sources(widths or [shape.channels], gpu.dtype)
        self.width = shape.channels // shape.groups
        self.count = shape.pixels * self.width
        self.scalars = Scalars()

    def body(self) -> None:
        """Declare the arguments and run a block for each group."""
        s, v = self.shape, self.scalars
        self.sources.declare((s.batch, s.pixels))
        gamma, beta = (argument(name, (s.channels,), self.dtype) for name in ("gamma", "beta"))
        y = argument("y", (s.batch, s.pixels, s.channels), self.dtype)
        with grid(THREADS, s.groups, s.batch) as (thread, group, n):
            self.thread, self.group, self.n = thread, group, n
            self.partial = shared((THREADS // WARP,), "float32")
            self.state = registers(3)  # a sum or its mean, the mean of the group, what it is scaled by
            self._mean(lambda x: x)
            T.buffer_store(self.state, self.state[0], [1])
            mean, inverse = self.state[1], self.state[2]
            self._mean(lambda x: (x - mean) * (x - mean))
            T.buffer_store(self.state, T.float32(1) / T.sqrt(self.state[0] + T.float32(s.epsilon)), [2])

            def write(x: Value, pixel: Value, channel: Value) -> None:
                value = T.bind((x - mean) * inverse * v.load(gamma, channel) + v.load(beta, channel))
                if self.activation is not None:
                    (value,) = ACTIVATIONS[self.activation](v, [value])
                v.store(y, value, n, pixel, channel)

            self._each(write)

    def _each(self, use: Callable[[Value, Value, Value], None]) -> None:
        """Run ``use(x, pixel, channel)`` over this thread's share of the group."""
        with T.serial(-(-self.count // THREADS)) as i:
            index = T.bind(i * THREADS + self.thread)

            def body() -> None:
                pixel = T.bind(T.floordiv(index, self.width))
                channel = T.bind(self.group * self.width + T.floormod(index, self.width))
                use(T.bind(self.sources.at(self.n, pixel, channel).astype("float32")), pixel, channel)

            if self.count % THREADS == 0:
                body()
            else:
                with T.If(index < self.count), T.Then():
                    body()

    def _mean(self, of: Callable[[Value], Value]) -> None:
        """Have every thread know the mean of ``of(x)`` over the group."""
        state = self.state
        T.buffer_store(state, T.float32(0), [0])
        self._each(lambda x, _pixel, _channel: T.buffer_store(state, state[0] + of(x), [0]))
        join_lanes(state, 0, lambda a, b: a + b)
        synchronise()
        with T.If(T.floormod(self.thread, WARP) == 0), T.Then():
            T.buffer_store(self.partial, state[0], [T.floordiv(self.thread, WARP)])
        synchronise()
        total = self.partial[0]
        for warp in range(1, THREADS // WARP):
            total = total + self.partial[warp]
        T.buffer_store(state, total / T.float32(self.count), [0])


def group_norm(shape: GroupNormShape, activation: str | None, gpu: Gpu, widths: Sequence[int] = ()) -> tirx.PrimFunc:
    """Return GroupNorm and activation as a function of x [N, pixels, C], gamma [C], beta [C] and y.

    With ``widths`` x is several arguments [N, pixels, widths[i]], whose channels follow each other.
    """
    return prim_func(_GroupNorm(shape, activation, gpu, widths).body)
