"""What the virtual machine is left to do between kernels."""

from __future__ import annotations

import pytest
from tvm import relax

from compiler.graph import bindings, is_op, static_shape
from compiler.optimisations import enabled
from compiler.passes.share_tensors import is_view
from compiler.pipeline import optimise
from compiler.target import resolve_target
from compiler.trace import trace
from models.checkpoint import load_checkpoint
from models.components import components


@pytest.fixture(scope="module")
def lowered():
    """Return the bindings of random:tiny's text encoder after the last pass."""
    checkpoint = load_checkpoint("random:tiny")
    encoder = components(checkpoint, *checkpoint.size(None, None), 1)[0]
    phases = dict(optimise(trace(encoder).module, resolve_target("auto"), enabled("", "float32"), None, set()))
    return bindings(phases["lower"]["encode"])


def test_nothing_is_freed_by_itself(lowered):
    assert not [step for step in lowered if is_op(step.value, "relax.vm.kill_object")]


def test_nothing_has_two_names(lowered):
    assert not [step for step in lowered if isinstance(step.value, relax.Var)]


def test_a_tensor_is_made_once(lowered):
    made = [
        (step.value.args[0], int(step.value.args[1]), tuple(static_shape(step.var)), str(step.var.ty.dtype))
        for step in lowered
        if is_op(step.value, "relax.vm.alloc_tensor")
    ]
    storages = [step.var for step in lowered if is_op(step.value, "relax.vm.alloc_storage")]
    assert len(made) == len(set(made)) > len(storages) > 1
    views = [(step.value.args[0], tuple(static_shape(step.var))) for step in lowered if is_view(step.value)]
    assert len(views) == len(set(views))
