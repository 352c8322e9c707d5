"""The vocabulary of the GPU's kernels: threads, shared memory and tensor cores; see intrinsics.cuh.

A block is a row of threads, 32 of which are a warp. A tile of an operand lies in shared memory by rows, in chunks of
16 bytes; a fragment is what one thread holds of a matrix of 16 rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import tvm.tirx.script.builder.ir as T

from compiler.kernels.tir import Value, Vectors

WARP = 32
CHUNK = 8  # 16-bit numbers of a copy
EDGE = 16  # rows of a left fragment, and of the reduction in one instruction
NARROW = 8  # columns of a result's fragment
LEFT, RIGHT, SUMS = 4, 2, 4  # registers of the fragments
QUAD = 4  # lanes that share a row of a result's fragment


class Scalars(Vectors):
    """Numbers one by one, computed in float32 whatever the buffer's type."""

    def __init__(self) -> None:
        super().__init__(1)

    def load(self, buffer: Value, *index: Value) -> Value:
        return super().load(buffer, *index).astype("float32")

    def store(self, buffer: Value, value: Value, *index: Value) -> None:
        super().store(buffer, value.astype(buffer.dtype), *index)

    def exp2(self, values: Sequence[Value]) -> list[Value]:
        """Return 2^x, which the GPU has an instruction for."""
        return [T.bind(T.exp2(value)) for value in values]


@contextlib.contextmanager
def grid(threads: int, *blocks: int, at_once: int | None = None) -> Iterator[tuple[Value, ...]]:
    """Launch ``blocks`` of ``threads``; yields the thread and the block's indices.

    With ``at_once`` a thread may use as many registers as let so many blocks share a multiprocessor; without it ptxas
    aims at a number of its own, for which it would rather spill.
    """
    with contextlib.ExitStack() as stack:
        places = [
            stack.enter_context(T.launch_thread(f"blockIdx.{axis}", n)) for axis, n in zip("xyz", blocks, strict=False)
        ]
        thread = stack.enter_context(T.launch_thread("threadIdx.x", threads))
        if at_once is not None:
            stack.enter_context(T.attr(T.int32(0), "tirx.launch_bounds_min_blocks_per_sm", T.int32(at_once)))
        yield (thread, *places)


def registers(count: int, dtype: str = "float32") -> Value:
    """Allocate registers of a thread. Every index must be known when the kernel is made."""
    return T.alloc_buffer((count,), dtype, scope="local", layout=None)


def fill(register: Value, value: float) -> None:
    """Set all of some registers to one number."""
    with unrolled(int(register.shape[0])) as index:
        T.buffer_store(register, T.float32(value), [index])


def unrolled(count: int) -> Value:
    """Return a loop that nvcc unrolls, so that registers can be indexed by it."""
    return T.unroll(count, annotations={"pragma_unroll_explicit": False})


def shared(shape: Sequence[int], dtype: str = "uint16") -> Value:
    """Allocate memory of the block; numbers of 16 bits are but moved there, so their type does not matter."""
    return T.alloc_buffer(tuple(shape), dtype, scope="shared.dyn", layout=None)


def call(name: str, *arguments: Value) -> None:
    """Call a function of intrinsics.cuh that returns nothing."""
    T.evaluate(T.call_extern("void", name, *arguments))


def at(buffer: Value, offset: Value) -> Value:
    """Return the address of an element by its offset.

    TVM is not told whether it is read or written, and leaves it to the kernel to synchronise.
    """
    return buffer.access_ptr("", offset=offset)


def synchronise() -> None:
    """Wait for all threads of the block."""
    T.evaluate(T.tvm_storage_sync("shared"))


def swap(value: Value, mask: int) -> Value:
    """Return the value of another lane, see ``tvmerge_swap``."""
    return T.call_extern("float32", "tvmerge_swap", value, mask)


def join_lanes(register: Value, index: int, join: Callable[[Value, Value], Value], lanes: int = WARP) -> None:
    """Join what groups of ``lanes`` neighbours have in a register; each of them gets the result.

    TVM binds no value that is read from registers at a kernel's outermost level, so results stay in them.
    """
    mask = 1
    while mask < lanes:
        T.buffer_store(register, join(register[index], swap(register[index], mask)), [index])
        mask *= 2


def each_vote(condition: Value, use: Callable[[Value], None]) -> None:
    """Run ``use(lane)`` in all lanes of a warp for each lane whose condition holds."""
    left = registers(1, "uint32")
    T.buffer_store(left, T.call_extern("uint32", "tvmerge_vote", condition.astype("int32")), [0])
    with T.While(left[0] != T.uint32(0)):
        use(T.bind(T.call_extern("int32", "tvmerge_lowest", left[0])))
        T.buffer_store(left, T.bitwise_and(left[0], left[0] - T.uint32(1)), [0])


def store_pair(buffer: Value, offset: Value, low: Value, high: Value) -> None:
    """Store two neighbours, float32, in the buffer's type of 16 bits; ``offset`` is even."""
    pair = T.call_extern("uint32", f"tvmerge_pair_{buffer.dtype}", low, high)
    call("tvmerge_store", at(buffer, offset), pair)
