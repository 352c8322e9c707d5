"""What a kernel computes and moves: the FLOPs of its operator and the bytes that no kernel could do without.

A multiply and an add are two FLOPs. A convolution has those of the direct one where Winograd does fewer, a multiply of
float32 those of one product where tile registers take three. What is added or applied to an operator's result on the
way is not counted: it is little. Bytes are inputs, weights and results, each moved once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable

import tvm
import tvm_ffi
from tvm import relax, s_tir, tirx

from compiler.graph import called_functions, static_shape
from compiler.kernels.plan import KERNEL
from compiler.kernels.plan_tokens import MATCH
from runtime.artifact import Kernel

FLOPS, BYTES = "tvmerge.flops", "tvmerge.bytes"  # attributes of a function in TensorIR, of one call
ORIGIN = "tvmerge.origin"  # attribute of such a function that is no kernel of ours: what scheduled it
NORM = 8  # FLOPs a number: mean 1, variance 3, normalise 2, scale and shift 2
SOFTMAX = 5  # maximum, difference, exponential, sum, quotient


def _matmul(call: relax.Call, _output: list[int]) -> int:
    data, weight = call.args
    return 2 * math.prod(static_shape(data)) * static_shape(weight)[-1]


def _conv2d(call: relax.Call, output: list[int]) -> int:
    return 2 * math.prod(output) * math.prod(static_shape(call.args[1])[:-1])


def _attention(call: relax.Call, _output: list[int]) -> int:
    """Both products, masked scores too."""
    query, key, value = call.args
    batch, queries, heads, size = static_shape(query)
    return 2 * batch * heads * queries * static_shape(key)[1] * (size + static_shape(value)[-1])


def _tokens(call: relax.Call, output: list[int]) -> int:
    """The similarities that tokens are matched by; else a number is added or copied."""
    if str(call.args[0].global_symbol) != MATCH:
        return math.prod(output)
    tokens, settings = call.args[1].fields
    batch, count, channels = static_shape(tokens)
    takers = count // math.prod(int(value) for value in settings.values[2:4])
    return 2 * batch * (count - takers) * takers * channels


OPERATORS: dict[str, Callable[[relax.Call, list[int]], int]] = {
    "relax.matmul": _matmul,
    "relax.nn.conv2d": _conv2d,
    "relax.nn.attention": _attention,
    "relax.nn.softmax": lambda _call, output: SOFTMAX * math.prod(output),
    "relax.nn.group_norm": lambda _call, output: NORM * math.prod(output),
    "relax.nn.layer_norm": lambda _call, output: NORM * math.prod(output),
    "relax.call_dps_packed": _tokens,
}


def operator_flops(call: relax.Call, output: list[int]) -> int:
    """Return the FLOPs of an operator that a kernel of ours takes and whose result has the shape ``output``."""
    return OPERATORS[call.op.name](call, output)


def with_costs(function: tirx.PrimFunc, flops: int) -> tirx.PrimFunc:
    """Return a kernel of ours with its costs as attributes."""
    return _with(function, flops, sum(_numbers(buffer) * _itemsize(buffer) for buffer in function.params))


def with_estimate(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Return a function whose loops nobody has scheduled yet with its costs as attributes, as these loops tell them.

    A buffer that is read less often than it has numbers (a table of embeddings) does not move as a whole.
    """
    reads: Counter[tvm.ir.Var] = Counter()

    def visit(block: s_tir.SBlock) -> None:
        times = math.prod(int(variable.dom.extent) for variable in block.iter_vars)
        if block.iter_vars:  # not the root, which holds the others
            tvm_ffi.structural_walk(block.body, (tvm.ir.TensorLoad, lambda load: reads.update({load.source: times})))

    tvm_ffi.structural_walk(function.body, (s_tir.SBlock, visit))
    numbers = ((buffer, min(_numbers(buffer), reads.get(buffer, _numbers(buffer)))) for buffer in function.params)
    moved = sum(count * _itemsize(buffer) for buffer, count in numbers)
    return _with(function, int(s_tir.analysis.estimate_tir_flops(tvm.IRModule({"main": function}))), moved)


def _numbers(buffer: tvm.ir.Var) -> int:
    return math.prod(int(extent) for extent in buffer.shape)


def _itemsize(buffer: tvm.ir.Var) -> int:
    return -(-tvm.DataType(buffer.dtype).bits // 8)


def _with(function: tirx.PrimFunc, flops: int, moved: int) -> tirx.PrimFunc:
    return function.with_attr({FLOPS: flops, BYTES: moved})


def kernels(module: tvm.IRModule, functions: Iterable[str]) -> dict[str, Kernel]:
    """Return every function in TensorIR of ``module`` by symbol, and how often each of ``functions`` calls it."""
    calls = {name: Counter(called_functions(module[name])) for name in functions}
    found = {}
    for variable, function in module.functions_items():
        if isinstance(function, tirx.PrimFunc):
            symbol, attrs = variable.name_hint, function.attrs or {}
            origin = str(attrs.get(KERNEL, attrs.get(ORIGIN, "bare")))
            counts = {name: count[symbol] for name, count in calls.items() if count[symbol]}
            found[symbol] = Kernel(origin, int(attrs.get(FLOPS, 0)), int(attrs.get(BYTES, 0)), counts)
    return found
