"""One tensor object for each place in memory and shape, where the virtual machine would make one for each use."""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from compiler.graph import is_op, static_shape

VIEW = "vm.builtin.reshape"
Place = tuple[relax.Var, int, str]  # storage or tensor, offset in bytes, dtype


def is_view(value: relax.Expr) -> bool:
    """Tell whether ``value`` is another shape of a tensor, after lowering."""
    return isinstance(value, relax.Call) and getattr(value.op, "global_symbol", None) == VIEW


@mutator
class _Sharer(PyExprMutator):
    """Rebuild a function; variables of tensors that an earlier one equals in place and shape become that one."""

    def __init__(self) -> None:
        super().__init__(tvm.IRModule())
        self.places: dict[relax.Var, Place] = {}
        self.made: dict[tuple[Place, tuple[int, ...]], relax.Var] = {}

    def _place(self, value: relax.Expr) -> Place | None:
        """Return where a new tensor or view lies, None for whatever else ``value`` is."""
        if is_op(value, "relax.vm.alloc_tensor"):
            return value.args[0], int(value.args[1]), str(value.ty.dtype)
        if is_view(value):
            return self.places.get(value.args[0], (value.args[0], 0, str(value.ty.dtype)))
        return None

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        place = self._place(binding.value)
        if place is None:
            super().visit_var_binding_(binding)
            return
        self.places[binding.var] = place
        tensor = (place, tuple(static_shape(binding.var)))
        if tensor in self.made:
            self.set_var_remap(binding.var, self.made[tensor])
        else:
            super().visit_var_binding_(binding)
            self.made[tensor] = self.visit_expr(binding.var)


@tvm.transform.module_pass(opt_level=0, name="ShareTensors")
class ShareTensors:
    """Make each tensor of planned memory, and each view, once in a function.

    Tensors whose lives don't overlap share storages by plan; where they have one shape they can be one object too.
    """

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        functions = {
            g: _Sharer().visit_expr(f) if isinstance(f, relax.Function) else f for g, f in module.functions_items()
        }
        return tvm.IRModule(functions, attrs=module.attrs)
