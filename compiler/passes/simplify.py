"""Graph clean-up: transposes and reshapes composed and cancelled, operations that do nothing removed."""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from compiler.graph import is_op, scalar_value, static_shape

HALVES = ("float16", "bfloat16")
SHAPE_OPS = ("relax.expand_dims", "relax.squeeze", "relax.flatten")


def _moves_only_units(shape: list[int], axes: list[int]) -> bool:
    kept = [axis for axis in axes if shape[axis] != 1]
    return kept == sorted(kept)


@mutator
class _Simplifier(PyExprMutator):
    def _bound(self, expr: relax.Expr) -> relax.Expr | None:
        return self.lookup_binding(expr) if isinstance(expr, relax.Var) else None

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if not isinstance(call, relax.Call) or not isinstance(call.op, tvm.ir.Op):
            return call
        name = call.op.name
        if name == "relax.permute_dims":
            return self._permute(call)
        if name == "relax.reshape" or name in SHAPE_OPS:
            return self._reshape(call.args[0], static_shape(self.builder_.normalize(call)))
        if name == "relax.astype":
            return self._cast(call)
        if name in ("relax.divide", "relax.multiply") and scalar_value(call.args[1]) == 1.0:
            return self._unless_broadcast(call)
        if name in ("relax.add", "relax.subtract") and scalar_value(call.args[1]) == 0.0:
            return self._unless_broadcast(call)
        return call

    def _unless_broadcast(self, call: relax.Call) -> relax.Expr:
        normal = self.builder_.normalize(call)
        same = static_shape(normal) == static_shape(call.args[0]) and normal.ty.dtype == call.args[0].ty.dtype
        return call.args[0] if same else call

    def _cast(self, call: relax.Call) -> relax.Expr:
        source, dtype = call.args[0], call.attrs.dtype
        inner = self._bound(source)
        if is_op(inner, "relax.astype") and inner.args[0].ty.dtype == dtype in HALVES and source.ty.dtype == "float32":
            return inner.args[0]  # nothing was lost on the way
        return source if source.ty.dtype == dtype else call

    def _permute(self, call: relax.Call) -> relax.Expr:
        source, rank = call.args[0], len(static_shape(call.args[0]))
        axes = list(range(rank))[::-1] if call.attrs.axes is None else [int(a) % rank for a in call.attrs.axes]
        inner = self._bound(source)
        if is_op(inner, "relax.permute_dims") and inner.attrs.axes is not None:
            before = [int(a) % rank for a in inner.attrs.axes]
            source, axes = inner.args[0], [before[a] for a in axes]
        shape = static_shape(source)
        if _moves_only_units(shape, axes):
            return self._reshape(source, [shape[a] for a in axes])
        return relax.op.permute_dims(source, axes)

    def _reshape(self, source: relax.Expr, shape: list[int]) -> relax.Expr:
        inner = self._bound(source)
        if is_op(inner, "relax.reshape"):
            source = inner.args[0]
        if static_shape(source) == shape:
            return source
        return relax.op.reshape(source, shape)


@tvm.transform.module_pass(opt_level=0, name="Simplify")
class Simplify:
    """Compose and cancel ``permute_dims`` and ``reshape``; drop ``x * 1``, ``x / 1``, ``x + 0`` and idle casts.

    A transpose that moves only axes of extent 1 becomes a reshape, which is a view.
    """

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        module = relax.transform.CanonicalizeBindings()(module)  # else a tuple would hide what is in it
        simplifier = _Simplifier(module)
        for variable, function in module.functions_items():
            if isinstance(function, relax.Function):
                simplifier.builder_.update_func(variable, simplifier.visit_expr(function))
        module = relax.transform.CanonicalizeBindings()(simplifier.builder_.get())
        return relax.transform.DeadCodeElimination()(module)
