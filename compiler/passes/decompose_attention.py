"""Attention that no kernel takes becomes plain multiplies and a softmax."""

from __future__ import annotations

import math

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from compiler.gpu.machine import Gpu
from compiler.graph import is_op, static_shape
from compiler.kernels.register_tile import Machine
from compiler.registry import find

MASKED = np.float32(-1e30)  # finite, so that a row that is masked everywhere gives a number, not NaN
SOFTMAX = "float32"  # its sums need more digits than 16 bits have


@mutator
class _Decomposer(PyExprMutator):
    def __init__(self, module: tvm.IRModule, machine: Machine | Gpu, on: dict[str, bool]) -> None:
        super().__init__(module)
        self.machine, self.on = machine, on

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if not is_op(call, "relax.nn.attention") and not is_op(call, "relax.nn.attention_bias"):
            return call
        if find(call, lambda _expr: False, self.machine, self.on) is not None:
            return call
        query, key, value = call.args[:3]
        (_, queries, _, size), keys = static_shape(query), static_shape(key)[1]
        scale = 1 / math.sqrt(size) if call.attrs.scale is None else float(call.attrs.scale)
        op, emit = relax.op, self.builder_.emit
        q = emit(op.permute_dims(op.multiply(query, relax.const(scale, query.ty.dtype)), [0, 2, 1, 3]))
        scores = emit(op.matmul(q, emit(op.permute_dims(key, [0, 2, 3, 1]))))
        if len(call.args) > 3:
            scores = emit(op.add(scores, call.args[3]))
        if scores.ty.dtype != SOFTMAX:
            scores = emit(op.astype(scores, SOFTMAX))
        if call.attrs.causal_mask is not None:
            offset = keys - queries if call.attrs.causal_mask == "BottomRight" else 0
            mask = np.triu(np.full((queries, keys), MASKED), k=1 + offset)
            scores = emit(op.add(scores, relax.const(mask)))
        weights = emit(op.nn.softmax(scores, axis=-1))
        if weights.ty.dtype != value.ty.dtype:
            weights = emit(op.astype(weights, value.ty.dtype))
        mixed = emit(op.matmul(weights, emit(op.permute_dims(value, [0, 2, 1, 3]))))
        return op.permute_dims(mixed, [0, 2, 1, 3])


@tvm.transform.module_pass(opt_level=0, name="DecomposeAttention")
class DecomposeAttention:
    """``nn.attention`` on [B, tokens, heads, size] -> matmul, softmax over the keys, matmul."""

    def __init__(self, machine: Machine | Gpu, on: dict[str, bool]) -> None:
        self.machine = machine
        self.on = on

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        decomposer = _Decomposer(module, self.machine, self.on)
        for variable, function in module.functions_items():
            if isinstance(function, relax.Function):
                decomposer.builder_.update_func(variable, decomposer.visit_expr(function))
        return decomposer.builder_.get()
