"""The packing of parameters as code for the machine that builds, where a component's own code can't run there."""

from __future__ import annotations

from pathlib import Path

import tvm
from tvm import relax, tirx

from compiler.graph import called_functions
from compiler.pipeline import packing_back, run

PACK = "pack_"


def part(module: tvm.IRModule, names: set[str]) -> tvm.IRModule:
    """Return the Relax functions ``names`` and what they call."""
    functions = {v: f for v, f in module.functions_items() if isinstance(f, relax.Function) and v.name_hint in names}
    needed = {name for function in functions.values() for name in called_functions(function)}
    kernels = {v: f for v, f in module.functions_items() if isinstance(f, tirx.PrimFunc) and v.name_hint in needed}
    return tvm.IRModule({**functions, **kernels}, attrs=module.attrs)


def packings(dispatched: tvm.IRModule) -> set[str]:
    """Return the names of the functions that pack parameters."""
    names = (v.name_hint for v, f in dispatched.functions_items() if isinstance(f, relax.Function))
    return {name for name in names if name.startswith(PACK)}


def lower_packing(
    module: tvm.IRModule, host: tvm.target.Target, on: dict[str, bool], used: set[str], debug_dir: Path | None = None
) -> tvm.IRModule:
    """Bring functions that pack parameters, as they were dispatched, into their final form for ``host``."""
    return dict(run(packing_back(), module, host, on, used, debug_dir))["lower"]
