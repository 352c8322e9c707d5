"""The graph in 16 bits: what is multiplied and what follows from it; inputs and results stay float32.

Where nothing has been multiplied yet, as in the embedding of the timestep, numbers stay float32 too. The casts of
weights depend on weights only, so they become a part of their packing.
"""

from __future__ import annotations

import ml_dtypes  # noqa: F401  (NumPy knows bfloat16 by it)
import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from compiler.graph import is_op

WIDE = "float32"
NARROWED = (
    "relax.matmul",
    "relax.nn.conv2d",
    "relax.nn.attention",
    "relax.nn.group_norm",
    "relax.nn.layer_norm",
    "relax.call_dps_packed",
)
WIDENED = ("relax.nn.softmax",)  # its sums need more digits
REFUSED = {"bfloat16": ("relax.nn.group_norm",)}  # by TVM; the casts around it vanish when a kernel takes it


@mutator
class _Narrower(PyExprMutator):
    def __init__(self, module: tvm.IRModule, dtype: str) -> None:
        super().__init__(module)
        self.dtype = dtype

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        arguments = [self.visit_expr(argument) for argument in call.args]
        if call.op.name != "relax.astype":
            narrow = call.op.name in NARROWED or any(self._has(argument, self.dtype) for argument in arguments)
            wide = call.op.name in (*WIDENED, *REFUSED.get(self.dtype, ()))
            dtype = self.dtype if narrow and not wide else WIDE
            arguments = [self._cast(argument, dtype) for argument in arguments]
        if is_op(call, "relax.matmul"):  # these name the type of their result
            return relax.op.matmul(*arguments)
        if is_op(call, "relax.nn.conv2d"):
            a = call.attrs
            layouts = (str(a.data_layout), str(a.kernel_layout), str(a.out_layout))
            return relax.op.nn.conv2d(*arguments, a.strides, a.padding, a.dilation, a.groups, *layouts)
        if is_op(call, "relax.call_dps_packed"):
            (kind,) = call.ty_args
            dtype = self.dtype if kind.dtype == WIDE else kind.dtype
            return relax.call_dps_packed(*arguments, relax.TensorType(kind.shape, dtype))
        return relax.Call(call.op, arguments, call.attrs, call.ty_args)

    def _has(self, value: relax.Expr, dtype: str) -> bool:
        if isinstance(value, relax.Tuple):
            return any(self._has(field, dtype) for field in value.fields)
        return isinstance(value.ty, relax.TensorType) and value.ty.dtype == dtype

    def _cast(self, value: relax.Expr, dtype: str) -> relax.Expr:
        """Return a tensor of numbers, or a tuple of such, in ``dtype``; anything else as it is."""
        if isinstance(value, relax.Tuple):
            return relax.Tuple([self._cast(field, dtype) for field in value.fields])
        if not self._has(value, self.dtype if dtype == WIDE else WIDE):
            return value
        if isinstance(value, tvm.ir.GenericConst):
            return relax.const(value.value.numpy().astype(np.dtype(dtype)), dtype)
        return self.builder_.emit(relax.op.astype(value, dtype))

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        """Give a function's result, which is the only variable that leaves the dataflow, its type again."""
        if isinstance(binding.var, relax.DataflowVar):
            super().visit_var_binding_(binding)
            return
        value = self.builder_.normalize(self.visit_expr(binding.value))
        if not isinstance(value, relax.Var):
            value = self.builder_.emit(value)
        self.set_var_remap(binding.var, self.builder_.emit_output(self._cast(value, WIDE)))


@tvm.transform.module_pass(opt_level=0, name="Narrow")
class Narrow:
    """Compute multiplies, attention and norms, and what follows from them, in ``dtype``: float16 or bfloat16."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        narrower = _Narrower(module, self.dtype)
        for variable, function in module.functions_items():
            if isinstance(function, relax.Function):
                narrower.builder_.update_func(variable, narrower.visit_expr(function))
        return narrower.builder_.get()
