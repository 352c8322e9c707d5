"""Products of words in the tile registers of AMX: 32 x 32 results, 32 numbers of the reduction a step.

A block of a left matrix is words [16 rows][16], of a right one words [16 pairs][16 columns]: each 1 KB and contiguous.
Registers 0 to 3 hold the result, 4 and 5 two blocks of rows, 6 and 7 two blocks of columns.
Source: Intel, Architecture Instruction Set Extensions Programming Reference, chapter 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm.tirx.script.builder.ir as T
from tvm import tirx

from compiler.kernels.tir import Value, local, pointer
from compiler.kernels.unit import SIDE, TILE, Product, Unit, either

REGISTERS = 8
PALETTE = 1
ROW_BYTES = 64


def _call(name: str, *arguments: Value) -> None:
    T.evaluate(T.call_llvm_intrin("void", f"llvm.x86.{name}", *arguments))


def _register(index: int) -> Value:
    return tirx.const(index, "int8")


def _load(register: int, buffer: Value, index: Sequence[Value], stride: int = ROW_BYTES) -> None:
    _call("tileloadd64", _register(register), pointer(buffer, index), T.int64(stride))


class Amx(Unit):
    """Keeps a result in tile registers."""

    def configure(self) -> None:
        """Give every tile register 16 rows of 64 bytes. Each task does it: the configuration belongs to a thread."""
        words = [PALETTE, 0, 0, 0]
        words += [ROW_BYTES | ROW_BYTES << 16] * (REGISTERS // 2) + [0] * 4
        words += [SIDE * 0x01010101] * (REGISTERS // 4) + [0] * 2
        table = local(len(words))
        for index, word in enumerate(words):  # TVM can't reinterpret a zero
            T.buffer_store(table, T.reinterpret("float32", T.int32(word)) if word else T.float32(0), [index])
        _call("ldtilecfg", pointer(table, [0]))

    def release(self) -> None:
        """Free the registers, so that a switch of threads need not save them."""
        _call("tilerelease")

    def accumulate(self, product: Product) -> None:
        """See ``Unit``."""
        quarters = range(2 * product.rows)  # of the result, by register

        def place(index: int) -> list[Value]:
            return [product.first + index // 2 * SIDE, index % 2 * SIDE]

        def clear() -> None:
            for index in quarters:
                _call("tilezero", _register(index))

        def load() -> None:
            for index in quarters:
                _load(index, product.sums, place(index), 4 * TILE)

        either(product.fresh, clear, load)
        with T.serial(product.count) as step:
            _multiply(product, step)
        for index in quarters:
            _call("tilestored64", _register(index), pointer(product.sums, place(index)), T.int64(4 * TILE))


def _multiply(product: Product, step: Value) -> None:
    """Add one step, the smallest products first."""
    rows, left, right, stride = product.rows, product.left, product.right, product.stride

    def load_left(part: int) -> None:
        *outer, row = left.at(step, part)
        for block in range(rows):
            _load(4 + block, left.parts[part], [*outer, row + block * SIDE * stride, 0], ROW_BYTES * stride)

    def load_right(part: int) -> None:
        for block in range(2):
            _load(6 + block, right.parts[part], [*right.at(step, part), block, 0, 0])

    def multiply() -> None:
        for index in range(2 * rows):
            _call("tdpbf16ps", _register(index), _register(4 + index // 2), _register(6 + index % 2))

    load_left(0)
    if len(left.parts) > 1:
        load_right(1)
        multiply()
    load_right(0)
    multiply()
    if len(left.parts) > 1:
        load_left(1)
        multiply()
