"""What the virtual machine is left to do between kernels."""

from __future__ import annotations

from collections import Counter

import tvm
from tvm import relax

from compiler.graph import bindings
from compiler.optimisations import enabled
from compiler.pipeline import optimise
from compiler.target import resolve_target
from compiler.trace import trace
from models.checkpoint import load_checkpoint
from models.components import components

VIEW = "vm.builtin.reshape"


def _name(value: relax.Expr) -> str:
    if not isinstance(value, relax.Call):
        return type(value).__name__
    return value.op.name if isinstance(value.op, tvm.ir.Op) else str(getattr(value.op, "global_symbol", "kernel"))


def test_nothing_is_viewed_twice_and_nothing_freed_by_itself():
    checkpoint = load_checkpoint("random:tiny")
    encoder = components(checkpoint, *checkpoint.size(None, None), 1)[0]
    phases = dict(optimise(trace(encoder).module, resolve_target("auto"), enabled("", "float32"), None, set()))
    steps = bindings(phases["lower"]["encode"])
    names = {step.var: _name(step.value) for step in steps}
    views = [step.value for step in steps if names[step.var] == VIEW]
    assert views
    assert not [view for view in views if names.get(view.args[0]) == VIEW]
    assert Counter(names.values())["relax.vm.kill_object"] == 0
