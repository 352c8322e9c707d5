"""Simplify on modules written out by hand: what it makes of them, and that their meaning stays."""

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R
from written_module import draw, operators, run, written

from compiler.passes.simplify import Simplify


def simplified(build, *shapes):
    """Build a function of one result over inputs of ``shapes``, simplify it; return both modules."""
    before = written(build, *shapes)
    return before, Simplify()(before)


class TestSimplify:
    def test_transposes_compose(self):
        @I.ir_module
        class Before:
            @R.function
            def main(x: R.Tensor((2, 3, 4, 5), "float32")) -> R.Tensor((5, 2, 3, 4), "float32"):
                with R.dataflow():
                    a = R.permute_dims(x, axes=[0, 2, 3, 1])
                    b = R.permute_dims(a, axes=[2, 0, 3, 1])
                    R.output(b)
                return b

        @I.ir_module
        class Expected:
            @R.function
            def main(x: R.Tensor((2, 3, 4, 5), "float32")) -> R.Tensor((5, 2, 3, 4), "float32"):
                with R.dataflow():
                    b = R.permute_dims(x, axes=[3, 0, 1, 2])
                    R.output(b)
                return b

        tvm.ir.assert_structural_equal(Simplify()(Before), Expected)
        (x,) = draw((2, 3, 4, 5))
        assert np.array_equal(run(Simplify()(Before), x), x.transpose(0, 2, 3, 1).transpose(2, 0, 3, 1))

    def test_transposes_cancel(self):
        @I.ir_module
        class Before:
            @R.function
            def main(x: R.Tensor((2, 3, 4, 5), "float32")) -> R.Tensor((2, 3, 4, 5), "float32"):
                with R.dataflow():
                    a = R.permute_dims(x, axes=[0, 2, 3, 1])
                    b = R.permute_dims(a, axes=[0, 3, 1, 2])
                    c = R.nn.relu(b)
                    R.output(c)
                return c

        @I.ir_module
        class Expected:
            @R.function
            def main(x: R.Tensor((2, 3, 4, 5), "float32")) -> R.Tensor((2, 3, 4, 5), "float32"):
                with R.dataflow():
                    c = R.nn.relu(x)
                    R.output(c)
                return c

        tvm.ir.assert_structural_equal(Simplify()(Before), Expected)

    def test_negative_and_absent_axes(self):
        def build(emit, x):
            return emit(relax.op.permute_dims(emit(relax.op.permute_dims(x, [0, -1, -2]))))

        before, now = simplified(build, (2, 3, 4))
        (x,) = draw((2, 3, 4))
        assert operators(now) == ["permute_dims"]
        assert np.array_equal(run(now, x), x.transpose(0, 2, 1).T) and np.array_equal(run(before, x), run(now, x))

    @pytest.mark.parametrize(
        ("shape", "axes", "moves"),
        [((4, 1, 7), [1, 0, 2], False), ((1, 5, 1, 6), [0, 2, 1, 3], False), ((4, 2, 7), [1, 0, 2], True)],
    )
    def test_moving_units_is_a_reshape(self, shape, axes, moves):
        _, now = simplified(lambda emit, x: emit(relax.op.permute_dims(x, axes)), shape)
        assert operators(now) == (["permute_dims"] if moves else ["reshape"])
        (x,) = draw(shape)
        assert np.array_equal(run(now, x), x.transpose(axes))

    def test_reshapes_compose_and_cancel(self):
        def build(emit, x):
            a = emit(relax.op.reshape(x, [6, 4]))
            b = emit(relax.op.expand_dims(a, [0]))
            c = emit(relax.op.squeeze(b, [0]))
            return emit(relax.op.nn.relu(emit(relax.op.reshape(c, [2, 3, 4]))))

        _, now = simplified(build, (2, 3, 4))
        assert operators(now) == ["nn.relu"]

    def test_a_value_that_is_read_twice_stays_right(self):
        def build(emit, x):
            a = emit(relax.op.permute_dims(x, [1, 0]))
            return emit(relax.op.matmul(a, emit(relax.op.permute_dims(a, [1, 0]))))

        _, now = simplified(build, (3, 4))
        (x,) = draw((3, 4))
        assert operators(now).count("permute_dims") == 1
        np.testing.assert_allclose(run(now, x), x.T @ x, rtol=1e-5)

    def test_what_does_nothing_goes(self):
        def build(emit, x):
            one, zero = relax.const(1.0, "float32"), relax.const(np.zeros((1, 1), np.float32))
            x = emit(relax.op.astype(emit(relax.op.multiply(x, one)), "float32"))
            x = emit(relax.op.subtract(emit(relax.op.add(emit(relax.op.divide(x, one)), zero)), zero))
            return emit(relax.op.nn.relu(x))

        _, now = simplified(build, (3, 4))
        assert operators(now) == ["nn.relu"]

    def test_what_only_looks_like_it_stays(self):
        """0 - x, 1 / x, a cast that casts, and a unit that broadcasts are no identities."""

        def build(emit, x):
            one, zero = relax.const(1.0, "float32"), relax.const(np.zeros((1, 1, 1), np.float32))
            x = emit(relax.op.subtract(zero, emit(relax.op.divide(one, x))))
            wide = emit(relax.op.astype(x, "float64"))
            narrow = emit(relax.op.astype(wide, "float32"))
            return emit(relax.op.multiply(narrow, relax.const(np.ones((1, 1, 1, 1), np.float32))))

        _, now = simplified(build, (3, 4))
        assert operators(now) == ["divide", "subtract", "astype", "astype", "multiply"]
        (x,) = draw((3, 4))
        np.testing.assert_allclose(run(now, x), (-1 / x)[None, None], rtol=1e-6)

    @settings(deadline=None, max_examples=10)
    @given(st.lists(st.permutations(range(4)), min_size=1, max_size=5), st.integers(0, 99))
    def test_any_chain_of_transposes_is_at_most_one(self, chain, seed):
        random = np.random.default_rng(seed)
        units = random.random() < 0.5
        shape = tuple(int(n) for n in random.integers(1 if units else 2, 4, 4))

        def build(emit, x):
            for axes in chain:
                x = emit(relax.op.permute_dims(x, list(axes)))
            return x

        _, now = simplified(build, shape)
        (x,) = draw(shape)
        expected = x
        for axes in chain:
            expected = expected.transpose(axes)
        assert units or len(operators(now)) <= 1
        if operators(now):
            assert np.array_equal(run(now, x), expected)
        else:
            assert np.array_equal(x, expected)
