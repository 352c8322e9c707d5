"""Modules written out by hand, and what they call and compute."""

import numpy as np
import tvm
from small_component import ALL_ON, CPU
from tvm import relax, tirx

from compiler.kernels.plan import KERNEL
from compiler.pipeline import steps

OFF = dict.fromkeys(ALL_ON, False)


def operators(module, function="main"):
    """Return the names of the Relax operators that a function calls, in order."""
    names = []

    def note(expr):
        if isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op):
            names.append(expr.op.name.removeprefix("relax."))

    relax.analysis.post_order_visit(module[function], note)
    return names


def kernels(module):
    """Return the kernels of ours in a module: name -> number of their arguments."""
    found = {}
    for _, function in module.functions_items():
        if isinstance(function, tirx.PrimFunc) and KERNEL in (function.attrs or {}):
            found.setdefault(str(function.attrs[KERNEL]), []).append(len(function.params))
    return found


def run(module, *inputs, function="main"):
    """Legalise, lower and run without any schedule: the plain meaning of a module."""
    lower = [relax.transform.LegalizeOps(), *(step.run for step in steps(CPU, OFF, set()) if step.phase == "lower")]
    with CPU.target:
        module = tvm.transform.Sequential(lower)(module)
    executable = tvm.compile(module, target=CPU.target, relax_pipeline=tvm.transform.Sequential([]))
    machine = relax.VirtualMachine(executable, tvm.cpu())
    return machine[function](*(tvm.runtime.tensor(x) for x in inputs)).numpy()


def draw(*shapes, seed=0):
    random = np.random.default_rng(seed)
    return [random.standard_normal(shape).astype(np.float32) for shape in shapes]


def written(build, *shapes, weights=0):
    """Write a module whose ``main`` computes ``build(emit, *variables)``; the last ``weights`` are parameters."""
    builder = relax.BlockBuilder()
    variables = [relax.Var(f"v{i}", relax.TensorType(shape, "float32")) for i, shape in enumerate(shapes)]
    with builder.function("main", variables, attrs={"num_input": len(shapes) - weights}):
        with builder.dataflow():
            result = builder.emit_output(build(builder.emit, *variables))
        builder.emit_func_output(result)
    return builder.get()
