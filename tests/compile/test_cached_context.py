"""What depends on the prompts only is a function of its own, called once a picture; together they are the whole."""

import math

import numpy as np
import pytest
import torch
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from small_component import after, load, save
from torch import nn
from tvm import relax
from written_module import draw, operators, run, written

from compiler.graph import bindings, static_shape
from compiler.passes.lift_context import CONTEXT, FIXED, LiftContext
from compiler.verify import verify
from models.checkpoint import load_checkpoint
from models.components import Component, Function, components
from runtime.quality import psnr

OP = relax.op


def fixing(build, *shapes, fixed=("v1",), weights=0):
    """Write a module whose inputs named in ``fixed`` stay the same."""
    module = written(build, *shapes, weights=weights)
    return tvm.IRModule({name: function.with_attr(FIXED, list(fixed)) for name, function in module.functions_items()})


def run_all(module, *inputs, function="main"):
    """Return all results of a function that gives a tuple, one at a time."""
    whole = module[function]
    results = []
    for index in range(len(whole.ret_ty.fields)):
        variable = relax.Var("one", whole.ret_ty.fields[index])
        picked = relax.DataflowBlock([relax.VarBinding(variable, relax.TupleGetItem(whole.body.body, index))])
        body = relax.SeqExpr([*whole.body.blocks, picked], variable)
        one = relax.Function(whole.params, body, variable.ty).with_attr("global_symbol", "one")
        results.append(run(tvm.IRModule({tvm.ir.GlobalVar("one"): one}), *inputs, function="one"))
    return results


def run_pair(module, fixed, moving, weights):
    """Run the context function of ``main`` on ``fixed`` and ``main`` on what it gives."""
    weights = dict(zip((f"v{i}" for i in range(len(fixed) + len(moving), 99)), weights, strict=False))
    name = str(module["main"].attrs[CONTEXT])
    used = [weights[variable.name] for variable in module[name].params[len(fixed) :]]
    kept = run_all(module, *fixed, *used, function=name)
    return run(tvm.IRModule({"main": module["main"]}), *moving, *kept, *weights.values())


class TestLiftContext:
    def test_keys_leave_and_queries_stay(self):
        def build(emit, x, c, q, k):
            queries = emit(OP.matmul(x, emit(OP.permute_dims(q, [1, 0]))))
            keys = emit(OP.matmul(c, emit(OP.permute_dims(k, [1, 0]))))
            return emit(OP.matmul(queries, emit(OP.permute_dims(keys, [1, 0]))))

        before = fixing(build, (3, 4), (5, 6), (7, 4), (7, 6), weights=2)
        module = LiftContext()(before)
        assert operators(module, "main_context") == ["permute_dims", "matmul", "permute_dims"]
        assert operators(module).count("matmul") == 2
        assert [v.name for v in module["main_context"].params] == ["v1", "v3"]
        assert [v.name for v in module["main"].params] == ["v0", "context.0", "v2", "v3"]
        assert int(module["main"].attrs["num_input"]) == 2 and int(module["main_context"].attrs["num_input"]) == 1
        x, c, q, k = draw((3, 4), (5, 6), (7, 4), (7, 6))
        np.testing.assert_allclose(run_pair(module, [c], [x], [q, k]), run(before, x, c, q, k), rtol=1e-5, atol=1e-5)

    def test_a_weight_that_both_use(self):
        def build(emit, x, c, w):
            w = emit(OP.permute_dims(w, [1, 0]))
            return emit(OP.add(emit(OP.matmul(x, w)), emit(OP.matmul(c, w))))

        before = fixing(build, (2, 4), (2, 4), (3, 4), weights=1)
        module = LiftContext()(before)
        assert operators(module, "main_context") == operators(module)[:-1] == ["permute_dims", "matmul"]
        x, c, w = draw((2, 4), (2, 4), (3, 4))
        np.testing.assert_allclose(run_pair(module, [c], [x], [w]), run(before, x, c, w), rtol=1e-5, atol=1e-5)

    def test_a_fixed_input_that_the_rest_reads_itself(self):
        def build(emit, x, c):
            return emit(OP.add(emit(OP.multiply(x, c)), emit(OP.exp(c))))

        before = fixing(build, (2, 4), (2, 4))
        module = LiftContext()(before)
        assert operators(module, "main_context") == ["exp"] and operators(module) == ["multiply", "add"]
        x, c = draw((2, 4), (2, 4))
        np.testing.assert_allclose(run_pair(module, [c], [x], []), run(before, x, c), rtol=1e-6)

    @pytest.mark.parametrize("fixed", [("v1",), ()])
    def test_a_view_alone_is_no_gain(self, fixed):
        def build(emit, x, c):
            return emit(OP.add(x, emit(OP.reshape(c, [4, 2])) if fixed else emit(OP.exp(emit(OP.reshape(c, [4, 2]))))))

        before = fixing(build, (4, 2), (2, 4), fixed=fixed)
        tvm.ir.assert_structural_equal(LiftContext()(before), before)

    @settings(deadline=None, max_examples=8)
    @given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=9))
    def test_any_graph_means_the_same(self, plan):
        """Values are made of any two before them: of a moving input, a fixed one and a weight."""

        def build(emit, x, c, w):
            values = [x, c, w, emit(OP.exp(c))]
            for kind, first, second in plan:
                a, b = values[first % len(values)], values[second % len(values)]
                values.append(emit((OP.add, OP.multiply, OP.subtract)[kind](a, emit(OP.tanh(b)))))
            result = values[-1]
            for value in values[:-1]:
                result = emit(OP.add(result, value))
            return result

        shape = (2, 3)
        before = fixing(build, shape, shape, shape, weights=1)
        module = LiftContext()(before)
        x, c, w = draw(shape, shape, shape)
        np.testing.assert_allclose(run_pair(module, [c], [x], [w]), run(before, x, c, w), rtol=1e-4, atol=1e-4)


def context_readers(module, name, rows, width):
    """Return how many kernel calls of a function read a matrix of ``rows`` x ``width``, as the prompts are."""
    count = 0
    for binding in bindings(module[name]):
        value = binding.value
        if isinstance(value, relax.Call) and value.op.same_as(tvm.ir.Op.get("relax.call_tir")):
            shapes = [static_shape(argument) for argument in value.args[1].fields]
            count += any(math.prod(shape[:-1]) == rows and shape[-1] == width for shape in shapes)
    return count


def test_no_step_of_a_unet_multiplies_over_the_prompts():
    unet = next(c for c in components(load_checkpoint("random:tiny"), 64, 64, 1) if c.name == "unet")
    layers = sum("attn2.to_k" in name or "attn2.to_v" in name for name, _ in unet.module.named_parameters())
    module, plain = after(unet, "dispatch"), after(unet, "dispatch", "cached_context")
    for function in unet.functions:
        batch, length, width = dict(function.inputs)["context"].shape
        assert context_readers(plain, function.name, batch * length, width) == layers == 14
        assert context_readers(module, function.name, batch * length, width) == 0
        assert context_readers(module, f"{function.name}_context", batch * length, width) == layers
    assert not any("context" in variable.name_hint for variable in plain.get_global_vars())


class CrossAttention(nn.Module):
    """Queries of x, keys and values of c, a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(24, 24), nn.Linear(13, 24), nn.Linear(13, 24), nn.Linear(24, 24)

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """Take x [B, n, 24] and c [B, m, 13]; return [B, n, 24]."""
        batch = len(x)
        heads = [y.view(batch, -1, 3, 8).transpose(1, 2) for y in (self.q(x), self.k(c), self.v(c))]
        mixed = nn.functional.scaled_dot_product_attention(*heads)
        return self.out(mixed.transpose(1, 2).reshape(batch, -1, 24)) + x


def cross_attention():
    random = torch.Generator().manual_seed(1)
    module = CrossAttention().eval().requires_grad_(False)
    for parameter in module.parameters():
        parameter.normal_(std=0.4, generator=random)

    def function(name, batch):
        x, c = torch.randn(batch, 9, 24, generator=random), torch.randn(batch, 7, 13, generator=random)
        return Function(name, (("x", x), ("c", c)), fixed=("c",))

    return Component("cross", module, (function("pair", 2), function("single", 1)))


OTHERS = "flash_attention,packed_weights,layout,fusion"


@pytest.fixture(scope="module", params=["", "flash_attention", OTHERS])
def both(request, tmp_path_factory):
    """Cross-attention with its context as a function of its own, and without."""
    folder = tmp_path_factory.mktemp("cross")
    names = {"on": request.param, "off": f"cached_context,{request.param}"}
    entries = {key: save(cross_attention(), folder / key, disable) for key, disable in names.items()}
    return {key: load(entry, "cross", folder / key) for key, entry in entries.items()}


def inputs_of(batch, seed):
    return draw((batch, 9, 24), (batch, 7, 13), seed=seed)


def test_the_pair_is_verified_and_described(both):
    for engine in both.values():
        measured = verify(cross_attention(), engine, "float32").psnr
        assert list(measured) == ["pair", "single"] and min(measured.values()) > 100
    on, off = (both[key].description.functions for key in ("on", "off"))
    assert list(on) == ["pair", "pair_context", "single", "single_context"] and list(off) == ["pair", "single"]
    for name in off:
        assert on[name].inputs == off[name].inputs and on[name].outputs == off[name].outputs
        assert (on[name].context, off[name].context) == (f"{name}_context", None)
        assert [tensor.name for tensor in on[f"{name}_context"].inputs] == ["c"]
        assert len(on[f"{name}_context"].outputs) == 2


@pytest.mark.parametrize(("name", "batch"), [("pair", 2), ("single", 1)])
def test_contexts_in_a_row_and_at_once_are_right(both, name, batch):
    """What was computed for one context is not what another one reads, even while both are in use."""
    cases = [inputs_of(batch, seed) for seed in (1, 2, 3)]
    bound = [both["on"].bind(name, c=c) for _, c in cases]
    for _ in range(2):
        for (x, c), call in zip(cases, bound, strict=True):
            expected = both["off"](name, x, c)
            assert psnr(expected, call(x)) >= 100 and psnr(expected, both["on"](name, x, c)) >= 100
            assert psnr(expected, both["off"].bind(name, c=c)(x)) >= 100
    (x, _), (_, other) = cases[:2]
    assert psnr(both["off"](name, x, other), bound[0](x)) < 30


def kernel_calls(engine, call):
    """Return how many kernels ``call`` runs on ``engine``."""
    count = 0

    def observe(_function, name, before, _result, *_arguments):
        nonlocal count
        count += bool(before) and not name.startswith("vm.")
        return 0

    engine.instrument(observe)
    call()
    engine.instrument(None)
    return count


def test_a_context_is_computed_once_for_many_calls(both):
    x, c = inputs_of(2, 0)
    steps, once = {}, {}
    for key, engine in both.items():
        once[key] = kernel_calls(engine, lambda e=engine: e.bind("pair", c=c))
        call = engine.bind("pair", c=c)
        counts = [kernel_calls(engine, lambda f=call: f(x)) for _ in range(3)]
        assert len(set(counts)) == 1
        steps[key] = counts[0]
    assert once["off"] == 0 < once["on"] and steps["on"] == steps["off"] - once["on"]


def test_what_can_not_be_bound_is_refused(both):
    x, c = inputs_of(2, 0)
    engine = both["on"]
    with pytest.raises(ValueError, match=r"cross\.pair: c must be float32\(2, 7, 13\), not float32\(1, 7, 13\)"):
        engine.bind("pair", c=c[:1])
    with pytest.raises(ValueError, match=r"cross\.pair: x must be float32"):
        engine.bind("pair", c=c)(x.astype(np.float64))
    with pytest.raises(KeyError, match="c"):
        engine.bind("pair", x=x)
    with pytest.raises(KeyError, match="d"):
        engine.bind("pair", c=c, d=c)
    for inputs in ((), (x, c)):
        with pytest.raises(ValueError, match="zip"):
            engine.bind("pair", c=c)(*inputs)
