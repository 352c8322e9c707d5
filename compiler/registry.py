"""All kernels of ours, and which of them takes an operator."""

from __future__ import annotations

import tvm
from tvm import relax

from compiler.gpu.machine import Gpu
from compiler.gpu.plans import TENSOR_CORES
from compiler.kernels.plan import Entry, IsWeight
from compiler.kernels.plan_multiplies import MULTIPLIES
from compiler.kernels.plan_rows import ROWS
from compiler.kernels.plan_tokens import TOKENS
from compiler.kernels.register_tile import Machine

CPU = (*MULTIPLIES, *ROWS, *TOKENS)


def find(
    call: relax.Expr, is_weight: IsWeight, machine: Machine | Gpu, on: dict[str, bool], upsample: int = 1
) -> Entry | None:
    """Return the cheapest entry that takes ``call``, of those whose optimisations are on and that upsample so."""
    if not isinstance(call, relax.Call) or not isinstance(call.op, tvm.ir.Op):
        return None
    entries = TENSOR_CORES if isinstance(machine, Gpu) else CPU
    wanted = (e for e in entries if e.operator == call.op.name and all(on[name] for name in e.optimisations))
    taking = [e for e in wanted if e.accepts(call, is_weight, machine) and e.upsamples(call, upsample, machine)]
    return min(taking, key=lambda entry: entry.cost(call, machine, upsample), default=None)
