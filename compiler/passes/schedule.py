"""Phase 3: every TensorIR function that is not a kernel of ours gets its loops scheduled."""

from __future__ import annotations

import tvm
from tvm import tirx

from compiler.costs import ORIGIN, with_estimate
from compiler.kernels.plan import KERNEL
from compiler.kernels.register_tile import Machine
from compiler.schedules.rule import SimpleRule


@tvm.transform.module_pass(opt_level=0, name="ScheduleRest")
class ScheduleRest:
    """Apply the simple rule to whatever was not dispatched to a kernel of ours."""

    def __init__(self, machine: Machine) -> None:
        self.rule = SimpleRule(machine.lanes, machine.cores)

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        functions = {}
        for variable, function in module.functions_items():
            if isinstance(function, tirx.PrimFunc) and KERNEL not in (function.attrs or {}):
                function = self.rule.schedule(with_estimate(function)).with_attr(ORIGIN, "rule")
            functions[variable] = function
        return tvm.IRModule(functions, attrs=module.attrs)
