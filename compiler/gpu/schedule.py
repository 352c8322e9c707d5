"""Phase 3 on the GPU: what was not dispatched to a kernel of ours is bound to threads by TVM's own rules."""

from __future__ import annotations

import tvm
from tvm import tirx
from tvm.s_tir import dlight

from compiler.costs import ORIGIN, with_estimate
from compiler.kernels.plan import KERNEL


@tvm.transform.module_pass(opt_level=0, name="BindRest")
class BindRest:
    """Apply dlight's rules, the last of which takes anything; kernels of ours are left alone."""

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        rest = {
            variable: with_estimate(function).with_attr(ORIGIN, "rule")
            for variable, function in module.functions_items()
            if isinstance(function, tirx.PrimFunc) and KERNEL not in (function.attrs or {})
        }
        rules = (dlight.gpu.Reduction(), dlight.gpu.GeneralReduction(), dlight.gpu.Fallback())
        bound = dlight.ApplyDefaultSchedule(*rules)(tvm.IRModule(rest)) if rest else {}
        functions = dict(module.functions_items())
        functions.update({variable: bound[variable.name_hint] for variable in rest})
        return tvm.IRModule(functions, attrs=module.attrs)
