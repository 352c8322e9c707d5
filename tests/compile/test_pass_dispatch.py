"""Dispatch on modules written out by hand: which kernel takes what, and that the meaning stays."""

import numpy as np
import pytest
from small_component import ALL_ON, WITHOUT_UNIT
from tvm import relax
from written_module import OFF, draw, kernels, operators, run, written

from compiler.passes.dispatch import Dispatch


def dispatched(build, *shapes, weights, on=ALL_ON):
    return Dispatch(WITHOUT_UNIT.machine, on, set())(written(build, *shapes, weights=weights))


class TestDispatch:
    def test_bias_time_embedding_and_residual_are_absorbed(self):
        """A convolution, a bias, a vector per picture and a residual are one call of one kernel."""

        def build(emit, x, t, residual, w, bias):
            y = emit(relax.op.nn.conv2d(x, w, padding=1, data_layout="NHWC", kernel_layout="HWIO"))
            y = emit(relax.op.add(y, bias))
            y = emit(relax.op.add(t, y))
            return emit(relax.op.add(y, residual))

        shapes = ((2, 5, 4, 3), (2, 1, 1, 7), (2, 5, 4, 7), (3, 3, 3, 7), (1, 1, 1, 7))
        module = dispatched(build, *shapes, weights=2)
        assert kernels(module) == {"conv2d": [6]} and "add" not in operators(module)
        inputs = draw(*shapes)
        np.testing.assert_allclose(run(module, *inputs), run(written(build, *shapes, weights=2), *inputs), atol=1e-5)

    def test_matmul_takes_bias_and_residual(self):
        def build(emit, x, residual, w, bias):
            return emit(relax.op.add(residual, emit(relax.op.add(emit(relax.op.matmul(x, w)), bias))))

        shapes = ((2, 5, 3), (2, 5, 7), (3, 7), (7,))
        module = dispatched(build, *shapes, weights=2)
        assert kernels(module) == {"matmul": [5]} and "add" not in operators(module)
        x, residual, w, bias = draw(*shapes)
        np.testing.assert_allclose(run(module, x, residual, w, bias), x @ w + bias + residual, atol=1e-5)

    def test_two_kernels_that_meet(self):
        """Of two products that are added one takes the other as its addend."""

        def build(emit, x, y, w, v):
            return emit(relax.op.add(emit(relax.op.matmul(x, w)), emit(relax.op.matmul(y, v))))

        shapes = ((5, 3), (5, 4), (3, 7), (4, 7))
        module = dispatched(build, *shapes, weights=2)
        assert sorted(kernels(module)["matmul"]) == [3, 4] and "add" not in operators(module)
        x, y, w, v = draw(*shapes)
        np.testing.assert_allclose(run(module, x, y, w, v), x @ w + y @ v, atol=1e-5)

    @pytest.mark.parametrize(("read_elsewhere", "channels"), [(False, 32), (True, 32), (False, 7)])
    def test_a_concatenation_is_read_where_its_parts_lie(self, read_elsewhere, channels):
        """If all readers can: an element-wise one can't, and GroupNorm wants whole vectors."""

        def build(emit, x, y, w, gamma, beta):
            both = emit(relax.op.concat([x, y], axis=3))
            normed = emit(relax.op.nn.group_norm(both, gamma, beta, 3, 3, [1, 2]))
            if read_elsewhere:
                normed = emit(relax.op.multiply(normed, both))
            skip = emit(relax.op.nn.conv2d(both, w, data_layout="NHWC", kernel_layout="HWIO"))
            return emit(relax.op.multiply(normed, skip))

        whole = 32 + channels if channels == 7 else 64 + channels
        shapes = ((2, 3, 4, whole - channels), (2, 3, 4, channels), (1, 1, whole, whole), (whole,), (whole,))
        module = dispatched(build, *shapes, weights=3)
        assert ("concat" in operators(module)) == (read_elsewhere or channels == 7)
        inputs = draw(*shapes)
        np.testing.assert_allclose(run(module, *inputs), run(written(build, *shapes, weights=3), *inputs), atol=1e-4)

    def test_a_result_that_is_read_twice_is_not_absorbed(self):
        def build(emit, x, w, bias):
            y = emit(relax.op.matmul(x, w))
            return emit(relax.op.multiply(emit(relax.op.add(y, bias)), y))

        shapes = ((5, 3), (3, 7), (7,))
        module = dispatched(build, *shapes, weights=2)
        assert kernels(module) == {"matmul": [3]} and operators(module).count("add") == 1
        x, w, bias = draw(*shapes)
        np.testing.assert_allclose(run(module, x, w, bias), (x @ w + bias) * (x @ w), atol=1e-4)

    def test_a_result_added_to_itself_is_not_absorbed(self):
        def build(emit, x, w):
            y = emit(relax.op.matmul(x, w))
            return emit(relax.op.add(y, y))

        module = dispatched(build, (5, 3), (3, 7), weights=1)
        x, w = draw((5, 3), (3, 7))
        np.testing.assert_allclose(run(module, x, w), 2 * (x @ w), atol=1e-5)

    @pytest.mark.parametrize("shape", [(4, 5, 7), (1, 7, 1), (2, 4, 5, 7), (4, 1, 7), (1, 5, 7), (1, 5, 1), (1, 1, 7)])
    def test_additions_of_any_shape_keep_their_meaning(self, shape):
        """What repeats row by row can be absorbed; what repeats otherwise or makes the result larger can't."""

        def build(emit, x, addend, w):
            return emit(relax.op.add(emit(relax.op.matmul(x, w)), addend))

        shapes = ((4, 5, 3), shape, (3, 7)) if shape != (1, 7, 1) else ((4, 7, 3), shape, (3, 7))
        module = dispatched(build, *shapes, weights=1)
        x, addend, w = draw(*shapes)
        np.testing.assert_allclose(run(module, x, addend, w), x @ w + addend, atol=1e-5)

    @pytest.mark.parametrize(
        ("optimisation", "stay"),
        [("packed_weights", ["nn.conv2d", "matmul"]), ("flash_attention", ["nn.attention"])],
    )
    def test_what_is_disabled_stays(self, optimisation, stay):
        def build(emit, x, w, v):
            y = emit(relax.op.nn.conv2d(x, v, data_layout="NHWC", kernel_layout="HWIO"))
            y = emit(relax.op.matmul(y, w))
            return emit(relax.op.nn.attention(y, y, y))

        shapes = ((2, 5, 4, 3), (7, 7), (2, 2, 3, 7))
        on = {**ALL_ON, optimisation: False}
        module = dispatched(build, *shapes, weights=2, on=on)
        assert [name for name in operators(module) if name in ("nn.conv2d", "matmul", "nn.attention")] == stay
        assert len(kernels(module)) == 3 - len(stay)
        inputs = draw(*shapes)
        np.testing.assert_allclose(run(module, *inputs), run(written(build, *shapes, weights=2), *inputs), atol=1e-5)
        assert kernels(dispatched(build, *shapes, weights=2, on=OFF)) == {}

    def test_a_product_of_two_inputs_and_one_of_two_weights_stay(self):
        """Packing is for weights: two inputs have none, and two weights are themselves packed at build time."""

        def build(emit, x, y, w, v):
            return emit(relax.op.add(emit(relax.op.matmul(x, y)), emit(relax.op.matmul(w, v))))

        module = dispatched(build, (5, 3), (3, 7), (5, 4), (4, 7), weights=2)
        assert kernels(module) == {} and operators(module).count("matmul") == 2

    @pytest.mark.parametrize("options", [{"groups": 3}, {"dilation": 2}])
    def test_convolutions_of_other_kinds_stay(self, options):
        def build(emit, x, w):
            return emit(relax.op.nn.conv2d(x, w, data_layout="NHWC", kernel_layout="HWIO", **options))

        w = (2, 2, 1, 6) if "groups" in options else (2, 2, 3, 6)
        assert kernels(dispatched(build, (1, 7, 7, 3), w, weights=1)) == {}

    def test_equal_calls_share_one_kernel(self):
        def build(emit, x, w, v):
            return emit(relax.op.matmul(emit(relax.op.matmul(x, w)), v))

        assert kernels(dispatched(build, (5, 7), (7, 7), (7, 7), weights=2)) == {"matmul": [3]}
