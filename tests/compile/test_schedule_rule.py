"""Loop nests that no kernel takes: the simple rule schedules each of them, and the result stays."""

import numpy as np
import pytest
import tvm_ffi
from hypothesis import given, settings
from hypothesis import strategies as st
from small_component import CPU, after, block_component
from tvm import relax, tirx
from written_module import draw, run, written

from compiler.kernels.plan import KERNEL
from compiler.passes.schedule import ORIGIN, ScheduleRest

LOOP_KINDS = {tirx.ForKind.PARALLEL: "parallel", tirx.ForKind.VECTORIZED: "vectorised"}


def nests(function):
    """Return each outermost loop of a TensorIR function with the kinds of all loops in it."""
    loops = _loops(function.body)
    inner = {loop for outer in loops for loop in _loops(outer.body)}
    return [
        ({LOOP_KINDS.get(loop.kind) for loop in [nest, *_loops(nest.body)]}, nest)
        for nest in loops
        if nest not in inner
    ]


def _loops(body):
    found = []
    tvm_ffi.structural_walk(body, (tirx.For, found.append))
    return found


def legalised(build, *shapes):
    module = relax.transform.LegalizeOps()(written(build, *shapes))
    return module, ScheduleRest(CPU.machine)(module)


OPS = relax.op
CASES = {
    "elementwise": (lambda emit, x, y: emit(OPS.nn.gelu(emit(OPS.add(x, y)))), [(3, 5, 7), (5, 7)]),
    "one element": (lambda emit, x: emit(OPS.exp(x)), [(1, 1)]),
    "transpose": (lambda emit, x: emit(OPS.permute_dims(x, [0, 2, 3, 1])), [(2, 3, 5, 9)]),
    "matmul": (lambda emit, x, y: emit(OPS.matmul(x, y)), [(13, 11), (11, 37)]),
    "matmul of a vector": (lambda emit, x, y: emit(OPS.matmul(x, y)), [(1, 31), (31, 33)]),
    "batched matmul": (lambda emit, x, y: emit(OPS.matmul(x, y)), [(2, 3, 7, 5), (2, 3, 5, 9)]),
    "matmul NT": (
        lambda emit, x, y: emit(OPS.matmul(x, emit(OPS.permute_dims(y, [1, 0])))),
        [(13, 11), (37, 11)],
    ),
    "NHWC convolution": (
        lambda emit, x, w: emit(OPS.nn.conv2d(x, w, padding=1, data_layout="NHWC", kernel_layout="HWIO")),
        [(2, 7, 5, 3), (3, 3, 3, 11)],
    ),
    "NCHW convolution": (
        lambda emit, x, w: emit(OPS.nn.conv2d(x, w, strides=2, padding=1)),
        [(1, 3, 9, 7), (5, 3, 3, 3)],
    ),
    "softmax": (lambda emit, x: emit(OPS.nn.softmax(x, axis=-1)), [(2, 5, 77)]),
    "softmax over rows": (lambda emit, x: emit(OPS.nn.softmax(x, axis=1)), [(9, 5, 21)]),
    "layer norm": (lambda emit, x, g, b: emit(OPS.nn.layer_norm(x, g, b, axes=[-1])), [(3, 50, 17), (17,), (17,)]),
    "group norm": (
        lambda emit, x, g, b: emit(OPS.nn.group_norm(x, g, b, num_groups=3, channel_axis=3, axes=[1, 2])),
        [(2, 5, 7, 9), (9,), (9,)],
    ),
    "mean": (lambda emit, x: emit(OPS.mean(x, axis=[1, 2])), [(3, 5, 7)]),
    "sum of all": (lambda emit, x: emit(OPS.sum(x)), [(5, 7)]),
    "maximum": (lambda emit, x: emit(OPS.max(x, axis=0)), [(5, 70)]),
    "concatenation": (lambda emit, x, y: emit(OPS.concat([x, y], axis=1)), [(3, 5), (3, 6)]),
    "resize": (
        lambda emit, x: emit(OPS.image.resize2d(x, (10, 14), layout="NHWC", method="nearest_neighbor")),
        [(1, 5, 7, 3)],
    ),
}
SCALAR = {"sum of all", "one element"}  # nothing to share or to vectorise


class TestScheduleRest:
    @pytest.mark.parametrize("case", CASES)
    def test_meaning_stays_and_loops_are_scheduled(self, case):
        build, shapes = CASES[case]
        plain, scheduled = legalised(build, *shapes)
        inputs = draw(*shapes)
        expected = run(plain, *inputs)
        assert np.ptp(expected) > 0 or expected.size == 1
        np.testing.assert_allclose(run(scheduled, *inputs), expected, rtol=1e-4, atol=1e-5)
        functions = [f for _, f in scheduled.functions_items() if isinstance(f, tirx.PrimFunc)]
        assert functions and all(str(f.attrs[ORIGIN]) == "rule" for f in functions)
        if case in SCALAR:
            return
        found = [nest for function in functions for nest in nests(function)]
        assert found and all("parallel" in kinds for kinds, _ in found), f"a bare loop nest:\n{scheduled.script()}"
        assert any("vectorised" in kinds for kinds, _ in found)

    @settings(deadline=None, max_examples=12)
    @given(
        st.integers(1, 40), st.integers(1, 20), st.integers(1, 40), st.integers(1, 3), st.booleans(), st.integers(0, 9)
    )
    def test_products_of_any_shape(self, m, k, n, batch, transposed, seed):
        def build(emit, x, y):
            y = emit(OPS.permute_dims(y, [0, 2, 1])) if transposed else y
            return emit(OPS.matmul(x, y))

        shapes = ((batch, m, k), (batch, n, k) if transposed else (batch, k, n))
        _, scheduled = legalised(build, *shapes)
        x, y = draw(*shapes, seed=seed)
        expected = x @ (y.transpose(0, 2, 1) if transposed else y)
        np.testing.assert_allclose(run(scheduled, x, y), expected, rtol=1e-4, atol=1e-5)

    def test_nothing_of_a_component_stays_bare(self):
        """In the whole pipeline: every function is a kernel of ours or has gone through the rule."""
        module = after(block_component(), "rest")
        functions = {g.name_hint: f for g, f in module.functions_items() if isinstance(f, tirx.PrimFunc)}
        assert len(functions) > 10
        for name, function in functions.items():
            assert KERNEL in function.attrs or str(function.attrs[ORIGIN]) == "rule", name
            for kinds, nest in nests(function):
                assert "parallel" in kinds, f"a bare loop nest in {name}:\n{nest}"
