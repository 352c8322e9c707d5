"""Attention decomposed, and attention dispatched to a kernel: what is left, and that its meaning stays."""

import numpy as np
import pytest
from small_component import ALL_ON, CPU, WITHOUT_UNIT
from tvm import relax
from written_module import draw, operators, run, written

from compiler.optimisations import enabled
from compiler.passes.decompose_attention import DecomposeAttention
from compiler.passes.dispatch import Dispatch


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

    @pytest.mark.parametrize("pass_", [DECOMPOSE, Dispatch(WITHOUT_UNIT.machine, ALL_ON, set())])
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

        module = Dispatch(CPU.machine, ALL_ON, set())(written(build, *self.SHAPES, (2, 3, 9, 13)))
        assert operators(module) == ["nn.attention_bias"]
        inputs = draw(*self.SHAPES, (2, 3, 9, 13))
        expected = attention(*inputs[:3], bias=inputs[3])
        np.testing.assert_allclose(run(DECOMPOSE(module), *inputs), expected, atol=2e-6)

    def test_a_row_that_sees_nothing_is_a_number(self):
        """More queries than keys, aligned at the end: the first queries see no key."""
        shapes = ((1, 9, 1, 4), (1, 5, 1, 4), (1, 5, 1, 4))

        def build(emit, q, k, v):
            return emit(relax.op.nn.attention(q, k, v, causal_mask="BottomRight"))

        for pass_ in (DECOMPOSE, Dispatch(CPU.machine, ALL_ON, set())):
            assert np.isfinite(run(pass_(written(build, *shapes)), *draw(*shapes))).all()
