"""LiftPacking: what leaves the functions, and that packing and the rest compute what both did."""

import json
import re

import numpy as np
from small_component import after, block_component
from tvm import relax
from written_module import draw, operators, run, written

from compiler.passes.lift_packing import LiftPacking


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
        assert [var.name for var in module["main"].params] == ["v0", "v1_pack_0", "v2_pack_0", "v3"]  # as C spells them
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
        assert lists[0] == lists[1] == [re.sub(r"\W", "_", name) for name in table]
        sources = [source for entry in table.values() for source in entry["sources"]]
        weights = dict(block_component().module.named_parameters())
        assert set(sources) == set(weights)
        assert len(sources) <= len(weights) + 1, "only a 3x3 convolution may want one packing for each of two kernels"
        packings = {entry["function"] for entry in table.values()} - {""}
        functions = {g.name_hint for g, f in module.functions_items() if isinstance(f, relax.Function)}
        assert packings == {name for name in functions if name.startswith("pack_")}
