"""Compiles one kernel and runs it on NumPy arrays."""

from collections.abc import Sequence

import numpy as np
import pytest
import tvm
from tvm import tirx

from compiler.kernels.conv2d import ConvShape
from compiler.kernels.register_tile import Machine
from compiler.target import resolve_target
from utils.cpu import host_instruction_sets, permit_tiles

# Vector lanes and registers of AVX-512, AVX2, SSE2 and NEON. All of them run on any CPU: LLVM splits vectors that are
# too wide.
SHAPES_OF_REGISTERS = ((16, 32), (8, 16), (4, 16), (4, 32))
# What multiplies words on this CPU, each with the parts that a number may be split into.
UNITS = [("amx", 1), ("amx", 2)] if permit_tiles() else []
if "avx512bf16" in (host_instruction_sets() or ()):
    UNITS.append(("dot", 1))
needs_unit = pytest.mark.skipif(not UNITS, reason="this CPU has neither AMX nor avx512_bf16")


def word_machine(unit: tuple[str, int], cores: int = 2, cache: int = 1 << 20) -> Machine:
    """Return a machine whose kernels multiply words with a unit, by name and parts."""
    return Machine(16, 32, cores, cache, unit=unit[0], parts=unit[1])


def machine(lanes: int, registers: int, cores: int = 2, cache: int = 1 << 20) -> Machine:
    return Machine(lanes, registers, cores, cache)


def run_kernel(
    function: tirx.PrimFunc, inputs: Sequence[np.ndarray], output: Sequence[int], dtype: str = "float32"
) -> np.ndarray:
    """Run ``function`` on ``inputs``, float32 or integers of 32 bits.

    The output is full of NaN, or of -1, before, so that what is not written shows.
    """
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    library = tvm.compile(module, target=resolve_target("llvm").target)
    result = tvm.runtime.tensor(np.full(output, np.nan if dtype == "float32" else -1, dtype))
    given = (np.ascontiguousarray(x, x.dtype if x.dtype in (np.int32, np.uint32) else np.float32) for x in inputs)
    library["main"](*(tvm.runtime.tensor(x) for x in given), result)
    return result.numpy()


def reads_picture(shape: ConvShape) -> bool:
    """Tell whether a convolution reads anything but padding, which would make zeros of all."""

    def reads(extent: int, kernel: int, stride: int, before: int, results: int) -> bool:
        return any(0 <= i * stride + tap - before < extent for i in range(results) for tap in range(kernel))

    sizes = (shape.height, shape.width), shape.kernel, shape.stride, shape.padding[:2], shape.result
    return all(reads(*axis) for axis in zip(*sizes, strict=True))


def panels(weight: np.ndarray, panel: int) -> np.ndarray:
    """Pack a matrix [rows, columns] as [panels, rows, panel], padded with zeros."""
    rows, columns = weight.shape
    count = -(-columns // panel)
    padded = np.zeros((rows, count * panel), np.float32)
    padded[:, :columns] = weight
    return padded.reshape(rows, count, panel).transpose(1, 0, 2)


def assert_near(result: np.ndarray, reference: np.ndarray, scale: float, relative: float) -> None:
    """Compare with a float64 reference; ``scale`` is the sum of the magnitudes that were added up.

    The allowance is far below the reference's own size, so that zeros fail, and above float32's steps near zero.
    """
    allowance = relative * scale + 5e-43  # some hundred of the smallest steps
    assert np.abs(reference).max() > 20 * allowance, "this case could not tell zeros from a right result"
    error = np.abs(result.astype(np.float64) - reference)
    assert np.isfinite(result).all()
    assert error.max() <= allowance, f"{error.max()} instead of at most {allowance}, at {np.argmax(error)}"
