"""A clock that is read around every kernel without a way through Python: some 0.1 us each time."""

from __future__ import annotations

import ctypes
import tempfile
import time
from pathlib import Path

import numpy as np
import tvm
import tvm.tirx.script.builder.ir as T
from tvm.script.ir_builder import IRBuilder

Span = tuple[str, float, float]  # name, and seconds of time.perf_counter's clock: start and end
ROOM = 1 << 18  # readings in one function's call
RAW_STRING = 8  # how TVM's virtual machine hands over a kernel's name: its address. Source: tvm/ffi/c_api.h

# Functions in TVM's calling convention, which takes and returns {type, padding, value}; no TensorIR function can be
# called with as many arguments as a kernel happens to have. A reading is seconds, nanoseconds and the name's address.
CODE = f"""
%any = type {{ i32, i32, i64 }}
@next = internal global ptr null
@free = internal global i64 0
declare i32 @clock_gettime(i32, ptr)

define i32 @__tvm_ffi_start(ptr %self, ptr %arguments, i32 %count, ptr %result) {{
  %first = getelementptr %any, ptr %arguments, i64 0, i32 2
  %buffer = load ptr, ptr %first
  store ptr %buffer, ptr @next
  %second = getelementptr %any, ptr %arguments, i64 1, i32 2
  %room = load i64, ptr %second
  store i64 %room, ptr @free
  ret i32 0
}}

define i32 @__tvm_ffi_free(ptr %self, ptr %arguments, i32 %count, ptr %result) {{
  %free = load i64, ptr @free
  store i32 1, ptr %result
  %value = getelementptr %any, ptr %result, i64 0, i32 2
  store i64 %free, ptr %value
  ret i32 0
}}

define i32 @__tvm_ffi_read(ptr %self, ptr %arguments, i32 %count, ptr %result) {{
  %free = load i64, ptr @free
  %rest = sub i64 %free, 1
  store i64 %rest, ptr @free
  %full = icmp slt i64 %rest, 0
  br i1 %full, label %done, label %write
write:
  %reading = load ptr, ptr @next
  %status = call i32 @clock_gettime(i32 {time.CLOCK_MONOTONIC}, ptr %reading)
  %type = getelementptr %any, ptr %arguments, i64 1, i32 0
  %kind = load i32, ptr %type
  %raw = icmp eq i32 %kind, {RAW_STRING}
  %value = getelementptr %any, ptr %arguments, i64 1, i32 2
  %address = load i64, ptr %value
  %name = select i1 %raw, i64 %address, i64 0
  %third = getelementptr i64, ptr %reading, i64 2
  store i64 %name, ptr %third
  %after = getelementptr i64, ptr %reading, i64 3
  store ptr %after, ptr @next
  br label %done
done:
  ret i32 0
}}
"""


class KernelClock:
    """Knows when each kernel of an engine began and ended.

    ``observer`` is for ``Engine.instrument``. Not for two threads at once.
    """

    def __init__(self) -> None:
        module = _compiled()
        self.observer, self._start, self._free = module["read"], module["start"], module["free"]
        self._readings = np.zeros((ROOM, 3), np.int64)
        self.start()

    def start(self) -> None:
        """Forget all readings."""
        self._start(self._readings.ctypes.data, ROOM)

    def readings(self) -> np.ndarray:
        """Return what was read since ``start``, for ``spans``.

        Raises:
            OverflowError: there was more than there is room for.
        """
        count = ROOM - int(self._free())
        if count > ROOM:
            raise OverflowError(f"{count // 2} kernels in one call, and there is room for {ROOM // 2}")
        return self._readings[:count].copy()


def spans(readings: np.ndarray) -> list[Span]:
    """Return the kernels that ``readings`` are of, while the library that they belong to is loaded.

    Raises:
        RuntimeError: TVM does not tell their names.
    """
    moments = (readings[:, 0] + readings[:, 1] * 1e-9).tolist()
    addresses = readings[::2, 2].tolist()
    if 0 in addresses:
        raise RuntimeError("TVM does not tell the names of kernels as it used to")
    names = {address: ctypes.string_at(address).decode() for address in set(addresses)}
    return [(names[a], start, end) for a, start, end in zip(addresses, moments[::2], moments[1::2], strict=True)]


def _compiled() -> tvm.runtime.Module:
    """Return a copy of the functions of its own; they are compiled in the process, for the host."""
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("main")
            T.func_attr({"global_symbol": "main"})
            T.evaluate(T.int32(0))
    empty = tvm.tirx.build(tvm.IRModule({"main": builder.get()}), target=tvm.target.Target("llvm"))
    host = [line for line in empty.inspect_source("ll").splitlines() if line.startswith("target ")]
    with tempfile.TemporaryDirectory(prefix="tvmerge-") as folder:
        path = Path(folder) / "clock.ll"
        path.write_text("\n".join(host) + CODE, encoding="utf-8")
        return tvm.runtime.load_module(str(path))
