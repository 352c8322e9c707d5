"""Products of matrices in the tile registers of AMX: 32 x 32 results, 32 numbers of the reduction a step.

A block of a left matrix is words [16 rows][16], of a right one words [16 pairs][16 columns]: each 1 KB and contiguous.
Registers 0 to 3 hold the result, 4 and 5 two blocks of rows, 6 and 7 two blocks of columns.
Source: Intel, Architecture Instruction Set Extensions Programming Reference, chapter 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm.tirx.script.builder.ir as T
from tvm import tirx

from compiler.kernels.tir import Value, local, pointer

SIDE = 16  # rows and columns of a tile register
TILE = 2 * SIDE  # rows and columns of a result
REGISTERS = 8
PALETTE = 1
ROW_BYTES = 64


def _call(name: str, *arguments: Value) -> None:
    T.evaluate(T.call_llvm_intrin("void", f"llvm.x86.{name}", *arguments))


def _register(index: int) -> Value:
    return tirx.const(index, "int8")


def _load(register: int, buffer: Value, index: Sequence[Value], stride: int = ROW_BYTES) -> None:
    _call("tileloadd64", _register(register), pointer(buffer, index), T.int64(stride))


def configure() -> None:
    """Give every tile register 16 rows of 64 bytes. Each task does it: the configuration belongs to a thread."""
    words = [PALETTE, 0, 0, 0]
    words += [ROW_BYTES | ROW_BYTES << 16] * (REGISTERS // 2) + [0] * 4
    words += [SIDE * 0x01010101] * (REGISTERS // 4) + [0] * 2
    table = local(len(words))
    for index, word in enumerate(words):  # TVM can't reinterpret a zero
        T.buffer_store(table, T.reinterpret("float32", T.int32(word)) if word else T.float32(0), [index])
    _call("ldtilecfg", pointer(table, [0]))


def release() -> None:
    """Free the registers, so that a switch of threads need not save them."""
    _call("tilerelease")


def clear(rows: int) -> None:
    """Set the result of ``rows`` blocks of rows (1 or 2) x 2 blocks of columns to zero."""
    for index in range(2 * rows):
        _call("tilezero", _register(index))


def load(rows: int, result: Value, first: Value) -> None:
    """Load the result from float32 [rows, 32], from row ``first``."""
    for index in range(2 * rows):
        _load(index, result, [first + index // 2 * SIDE, index % 2 * SIDE], 4 * TILE)


def store(rows: int, result: Value, first: Value) -> None:
    """Store the result to float32 [rows, 32], from row ``first``."""
    for index in range(2 * rows):
        address = pointer(result, [first + index // 2 * SIDE, index % 2 * SIDE])
        _call("tilestored64", _register(index), address, T.int64(4 * TILE))


def multiply(
    rows: int,
    left: Sequence[Value],
    left_index: Sequence[Value],
    right: Sequence[Value],
    right_index: Sequence[Value],
    stride: int = 1,
) -> None:
    """Add one step: the products of every two parts but those of the two low ones.

    Args:
        rows: blocks of rows, 1 or 2.
        left: the parts' words [..., rows, 16]; ``left_index`` leads to the first row.
        right: the parts' words [..., 2, 16, 16]; ``right_index`` leads to the block.
        stride: distance of two rows of the result in rows of the left words.
    """
    *outer, row = left_index

    def load_left(part: int) -> None:
        for block in range(rows):
            _load(4 + block, left[part], [*outer, row + block * SIDE * stride, 0], ROW_BYTES * stride)

    def load_right(part: int) -> None:
        for block in range(2):
            _load(6 + block, right[part], [*right_index, block, 0, 0])

    def product() -> None:
        for index in range(2 * rows):
            _call("tdpbf16ps", _register(index), _register(4 + index // 2), _register(6 + index % 2))

    load_left(0)
    if len(left) > 1:
        load_right(1)
        product()
    load_right(0)
    product()
    if len(left) > 1:
        load_left(1)
        product()
