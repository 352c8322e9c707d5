"""Each pass on modules written out by hand: what it makes of them, and that their meaning stays."""

import json

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from small_component import ALL_ON, CPU, WITHOUT_UNIT, after, block_component
from tvm import relax, tirx
from tvm.script import ir as I
from tvm.script import relax as R

from compiler.kernels.registry import KERNEL
from compiler.optimisations import enabled
from compiler.passes.decompose_attention import DecomposeAttention
from compiler.passes.dispatch import Dispatch
from compiler.passes.lift_packing import LiftPacking
from compiler.passes.simplify import Simplify
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
    lower = [relax.transform.LegalizeOps(), *(step.run for step in steps(CPU, OFF) if step.phase == "lower")]
    with CPU.target:
        module = tvm.transform.Sequential(lower)(module)
    executable = tvm.compile(module, target=CPU.target, relax_pipeline=tvm.transform.Sequential([]))
    machine = relax.VirtualMachine(executable, tvm.cpu())
    return machine[function](*(tvm.runtime.tensor(x) for x in inputs)).numpy()


def draw(*shapes, seed=0):
    random = np.random.default_rng(seed)
    return [random.standard_normal(shape).astype(np.float32) for shape in shapes]


def simplified(build, *shapes):
    """Build a function of one result over inputs of ``shapes``, simplify it; return both modules."""
    before = written(build, *shapes)
    return before, Simplify()(before)


def written(build, *shapes, weights=0):
    """Write a module whose ``main`` computes ``build(emit, *variables)``; the last ``weights`` are parameters."""
    builder = relax.BlockBuilder()
    variables = [relax.Var(f"v{i}", relax.TensorType(shape, "float32")) for i, shape in enumerate(shapes)]
    with builder.function("main", variables, attrs={"num_input": len(shapes) - weights}):
        with builder.dataflow():
            result = builder.emit_output(build(builder.emit, *variables))
        builder.emit_func_output(result)
    return builder.get()


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


def attention(query, key, value, bias=0.0, causal=None, scale=None):
    q, k, v = (x.astype(np.float64).transpose(0, 2, 1, 3) for x in (query, key, value))
    scores = q @ k.swapaxes(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale) + bias
    if causal is not None:
        offset = k.shape[2] - q.shape[2] if causal == "BottomRight" else 0
        seen = np.arange(k.shape[2])[None, :] <= np.arange(q.shape[2])[:, None] + offset
        scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return (weights / weights.sum(axis=-1, keepdims=True) @ v).transpose(0, 2, 1, 3)


DECOMPOSE = DecomposeAttention(CPU.machine, enabled("flash_attention"))


class TestAttention:
    SHAPES = ((2, 9, 3, 5), (2, 13, 3, 5), (2, 13, 3, 7))

    @pytest.mark.parametrize("pass_", [DECOMPOSE, Dispatch(WITHOUT_UNIT.machine, ALL_ON)])
    @pytest.mark.parametrize("causal", [None, "TopLeft", "BottomRight"])
    @pytest.mark.parametrize("scale", [None, 0.7])
    def test_decomposed_and_dispatched(self, pass_, causal, scale):
        def build(emit, q, k, v):
            return emit(relax.op.nn.attention(q, k, v, causal_mask=causal, scale=scale))

        module = pass_(written(build, *self.SHAPES))
        assert "nn.attention" not in operators(module)
        inputs = draw(*self.SHAPES)
        expected = attention(*inputs, causal=causal, scale=scale)
        np.testing.assert_allclose(run(module, *inputs), expected, atol=2e-6)

    def test_bias_is_decomposed_and_no_kernel_takes_it(self):
        def build(emit, q, k, v, bias):
            return emit(relax.op.nn.attention(q, k, v, bias))

        module = Dispatch(CPU.machine, ALL_ON)(written(build, *self.SHAPES, (2, 3, 9, 13)))
        assert operators(module) == ["nn.attention_bias"]
        inputs = draw(*self.SHAPES, (2, 3, 9, 13))
        expected = attention(*inputs[:3], bias=inputs[3])
        np.testing.assert_allclose(run(DECOMPOSE(module), *inputs), expected, atol=2e-6)

    def test_a_row_that_sees_nothing_is_a_number(self):
        """More queries than keys, aligned at the end: the first queries see no key."""
        shapes = ((1, 9, 1, 4), (1, 5, 1, 4), (1, 5, 1, 4))

        def build(emit, q, k, v):
            return emit(relax.op.nn.attention(q, k, v, causal_mask="BottomRight"))

        for pass_ in (DECOMPOSE, Dispatch(CPU.machine, ALL_ON)):
            assert np.isfinite(run(pass_(written(build, *shapes)), *draw(*shapes))).all()


def packed(module):
    """Return a module after LiftPacking, and its table."""
    module = LiftPacking()(module)
    return module, json.loads(str(module.attrs["packing"]))


class TestLiftPacking:
    def test_names_table_and_functions(self):
        """Two equal packings are one function; what is used raw keeps its name; what is unused goes."""

        def build(emit, x, a, b, c, unused):
            x = emit(relax.op.matmul(x, emit(relax.op.permute_dims(a, [1, 0]))))
            x = emit(relax.op.matmul(x, emit(relax.op.permute_dims(b, [1, 0]))))
            return emit(relax.op.add(x, c))

        module, table = packed(written(build, (2, 4), (4, 4), (4, 4), (4,), (9,), weights=4))
        assert table == {
            "v1@pack_0": {"function": "pack_0", "sources": ["v1"]},
            "v2@pack_0": {"function": "pack_0", "sources": ["v2"]},
            "v3": {"function": "", "sources": ["v3"]},
        }
        assert [var.name for var in module["main"].params] == ["v0", *table]
        assert operators(module) == ["matmul", "matmul", "add"] and operators(module, "pack_0") == ["permute_dims"]
        x, a, b, c = draw((2, 4), (4, 4), (4, 4), (4,))
        assert np.array_equal(run(module, a, function="pack_0"), a.T)
        np.testing.assert_allclose(run(module, x, a.T.copy(), b.T.copy(), c), x @ a.T @ b.T + c, rtol=1e-4, atol=1e-5)

    def test_a_packing_of_two_weights(self):
        """Weights that meet before any input does are one packed parameter of two sources, in the order of use."""

        def build(emit, x, a, b):
            return emit(relax.op.matmul(x, emit(relax.op.concat([b, a], axis=1))))

        module, table = packed(written(build, (2, 3), (3, 4), (3, 5), weights=2))
        assert table == {"v2+v1@pack_0": {"function": "pack_0", "sources": ["v2", "v1"]}}
        a, b = draw((3, 4), (3, 5))
        assert np.array_equal(run(module, b, a, function="pack_0"), np.concatenate([b, a], axis=1))

    def test_an_intermediate_packing_that_is_used_itself(self):
        def build(emit, x, a):
            half = emit(relax.op.multiply(a, relax.const(0.5, "float32")))
            return emit(relax.op.add(emit(relax.op.add(x, half)), emit(relax.op.negative(half))))

        module, table = packed(written(build, (3,), (3,), weights=1))
        assert set(table) == {"v1@pack_0", "v1@pack_1"} and operators(module) == ["add", "add"]
        x, a = draw((3,), (3,))
        packs = [run(module, a, function=table[name]["function"]) for name in table]
        np.testing.assert_allclose(run(module, x, *packs), x + a / 2 - a / 2, atol=1e-6)

    def test_functions_share_equal_weights(self):
        """Both functions of a component take one list of parameters, and most packings serve both."""
        module = after(block_component(), "dispatch")
        table = json.loads(str(module.attrs["packing"]))
        lists = [[var.name for var in module[name].params[2:]] for name in ("pair", "single")]
        assert lists[0] == lists[1] == list(table)
        sources = [source for entry in table.values() for source in entry["sources"]]
        weights = dict(block_component().module.named_parameters())
        assert set(sources) == set(weights)
        assert len(sources) <= len(weights) + 1, "only a 3x3 convolution may want one packing for each of two kernels"
        packings = {entry["function"] for entry in table.values()} - {""}
        assert packings == {str(g.name_hint) for g in module.get_global_vars() if g.name_hint.startswith("pack_")}


def dispatched(build, *shapes, weights, on=ALL_ON):
    return Dispatch(WITHOUT_UNIT.machine, on)(written(build, *shapes, weights=weights))


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
