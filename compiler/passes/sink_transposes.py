"""Moves transposes behind the operations that don't mind them, so that the next transpose cancels them."""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from compiler.graph import is_op, scalar_value, static_shape

UNARY = ("relax.nn.silu", "relax.nn.gelu", "relax.exp", "relax.sigmoid", "relax.clip")
NHWC_TO_NCHW = [0, 3, 1, 2]
BINARY = ("relax.add", "relax.subtract", "relax.multiply", "relax.divide")


def _axes(transpose: relax.Call) -> list[int]:
    rank = len(static_shape(transpose.args[0]))
    return list(range(rank))[::-1] if transpose.attrs.axes is None else [int(a) % rank for a in transpose.attrs.axes]


def _groups(before: list[int], after: list[int]) -> tuple[list[list[int]], list[list[int]]] | None:
    """Match the axes of two shapes of equal size: lists of source axes and of result axes that hold the same elements.

    Each match is one axis split into several or several joined into one; None where the shapes mix otherwise.
    """
    sources: list[list[int]] = []
    results: list[list[int]] = []
    i = j = 0
    while i < len(before) and j < len(after):
        source, result, left, right = [i], [j], before[i], after[j]
        while left != right:
            if left < right and i + 1 < len(before):
                i, left = i + 1, left * before[i + 1]
                source.append(i)
            elif right < left and j + 1 < len(after):
                j, right = j + 1, right * after[j + 1]
                result.append(j)
            else:
                return None
        if len(source) > 1 and len(result) > 1:
            return None
        sources.append(source)
        results.append(result)
        i, j = i + 1, j + 1
    return (sources, results) if i == len(before) and j == len(after) else None


@mutator
class _Sinker(PyExprMutator):
    def _transpose(self, expr: relax.Expr) -> relax.Call | None:
        bound = self.lookup_binding(expr) if isinstance(expr, relax.Var) else None
        return bound if is_op(bound, "relax.permute_dims") else None

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if not isinstance(call, relax.Call) or not isinstance(call.op, tvm.ir.Op):
            return call
        transpose = self._transpose(call.args[0]) if call.args else None
        if transpose is None:
            return call
        name = call.op.name
        if name in UNARY:
            return self._behind(transpose, relax.Call(call.op, [transpose.args[0], *call.args[1:]], call.attrs))
        if name in BINARY:
            return self._binary(call, transpose)
        if name == "relax.nn.group_norm":
            return self._group_norm(call, transpose)
        if name == "relax.image.resize2d" and call.attrs.layout == "NCHW" and _axes(transpose) == NHWC_TO_NCHW:
            return self._resize(call, transpose)
        if name == "relax.reshape":
            return self._reshape(call, transpose)
        return call

    def _behind(self, transpose: relax.Call, inner: relax.Call) -> relax.Expr:
        return relax.op.permute_dims(self.builder_.emit(inner), _axes(transpose))

    def _binary(self, call: relax.Call, transpose: relax.Call) -> relax.Expr:
        other = self._transpose(call.args[1])
        if other is not None and _axes(other) == _axes(transpose):
            inner = [transpose.args[0], other.args[0]]
        elif scalar_value(call.args[1]) is not None:
            inner = [transpose.args[0], call.args[1]]
        else:
            return call
        return self._behind(transpose, relax.Call(call.op, inner, call.attrs))

    def _group_norm(self, call: relax.Call, transpose: relax.Call) -> relax.Expr:
        axes, attrs = _axes(transpose), call.attrs
        rank = len(axes)
        inner = relax.op.nn.group_norm(
            transpose.args[0],
            *call.args[1:],
            num_groups=int(attrs.num_groups),
            channel_axis=axes[int(attrs.channel_axis) % rank],
            axes=sorted(axes[int(a) % rank] for a in attrs.axes),
            epsilon=float(attrs.epsilon),
            center=bool(attrs.center),
            scale=bool(attrs.scale),
        )
        return self._behind(transpose, inner)

    def _resize(self, call: relax.Call, transpose: relax.Call) -> relax.Expr:
        inner = relax.op.image.resize2d(
            transpose.args[0],
            call.args[1],
            layout="NHWC",
            method=call.attrs.method,
            coordinate_transformation_mode=call.attrs.coordinate_transformation_mode,
            rounding_method=call.attrs.rounding_method,
        )
        return self._behind(transpose, inner)

    def _reshape(self, call: relax.Call, transpose: relax.Call) -> relax.Expr:
        """Split or join the axes first where each join is of neighbours before the transpose too."""
        axes, result = _axes(transpose), static_shape(self.builder_.normalize(call))
        groups = _groups(static_shape(call.args[0]), result)
        if groups is None:
            return call
        origins = [[axes[i] for i in source] for source in groups[0]]  # in the axes before the transpose
        if any(origin != list(range(origin[0], origin[0] + len(origin))) for origin in origins):
            return call
        order = sorted(range(len(origins)), key=lambda g: origins[g][0])
        shape: list[int] = []
        position: dict[int, int] = {}
        for group in order:
            for axis in groups[1][group]:
                position[axis] = len(shape)
                shape.append(result[axis])
        inner = self.builder_.emit(relax.op.reshape(transpose.args[0], shape))
        return relax.op.permute_dims(inner, [position[axis] for axis in range(len(result))])


@tvm.transform.module_pass(opt_level=0, name="SinkTransposes")
class SinkTransposes:
    """``op(permute_dims(x))`` -> ``permute_dims(op(x))`` for element-wise operations, GroupNorm, upsampling, splits and
    joins."""

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        sinker = _Sinker(module)
        for variable, function in module.functions_items():
            if isinstance(function, relax.Function):
                sinker.builder_.update_func(variable, sinker.visit_expr(function))
        return sinker.builder_.get()
