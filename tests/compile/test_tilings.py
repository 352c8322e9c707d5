"""Whatever tuning may choose of a kernel, the result stays; and a choice travels as text."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_runner import UNITS, machine, needs_unit, run_kernel, word_machine

from compiler.kernels.conv2d import ConvShape
from compiler.kernels.flash_attention import AttentionShape
from compiler.kernels.group_norm import GroupNormShape
from compiler.kernels.tiling import choices
from compiler.kernels.tunable import TUNABLE, decode, encode, make


def drawn(name):
    """Draw any choice of a kernel."""
    fields = choices(TUNABLE[name].tiling)
    return st.fixed_dictionaries({field: st.sampled_from(values) for field, values in fields.items()})


def both(name, arguments, inputs, output, chosen):
    """Return the result of the kernel as it is and with what was chosen."""
    return (run_kernel(make(name, arguments, what), inputs, output) for what in ({}, chosen))


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@needs_unit
@settings(deadline=None, max_examples=12)
@given(chosen=drawn("tile_conv2d"), cache=st.sampled_from([1 << 13, 1 << 20]), wide=st.booleans())
def test_convolution(chosen, cache, wide):
    size = (9, 70) if wide else (37, 21)
    shape = ConvShape(2, *size, 96, 45, (3, 3), (1, 1), (1, 1, 1, 1))
    unit = next((unit for unit in UNITS if unit[1] == 2), None)
    if unit is None:
        pytest.skip("this CPU has no unit that splits float32")
    arguments = (shape, (1,), word_machine(unit, cache=cache), None, 1, ())
    inputs = [normal(2, *size, 96), normal(2, 9 * 96, 32), normal(1, 45)]
    own, tuned = both("tile_conv2d", arguments, inputs, (shape.pixels, 45), chosen)
    np.testing.assert_allclose(tuned, own, atol=1e-4 * np.abs(own).max())


@needs_unit
@settings(deadline=None, max_examples=12)
@given(chosen=drawn("tile_attention"), heads=st.sampled_from([1, 3, 8]), keys=st.sampled_from([77, 300]))
def test_attention(chosen, heads, keys):
    shape = AttentionShape(1, heads, 300, keys, 24, 24, 0.2, None)
    arguments = (shape, word_machine(max(UNITS, key=lambda unit: unit[1])))
    inputs = [normal(1, 300, heads, 24), normal(1, keys, heads, 24) * 0.5, normal(1, keys, heads, 24)]
    own, tuned = both("tile_attention", arguments, inputs, tuple(shape.output), chosen)
    np.testing.assert_allclose(tuned, own, atol=2e-2 if arguments[1].parts == 1 else 1e-4)


@settings(deadline=None, max_examples=8)
@given(chosen=drawn("group_norm"), channels=st.sampled_from([48, 7 * 3]))
def test_group_norm(chosen, channels):
    arguments = (GroupNormShape(2, 31, channels, 3, 1e-5), "silu", machine(16, 32), ())
    inputs = [normal(2, 31, channels), normal(channels), normal(channels)]
    own, tuned = both("group_norm", arguments, inputs, (2, 31, channels), chosen)
    np.testing.assert_allclose(tuned, own, atol=1e-5)


@pytest.mark.parametrize("name", TUNABLE)
def test_each_choice_changes_the_code(name):
    """A choice that changes nothing would be measured for nothing; some do only at other sizes than these."""
    unit = UNITS[-1] if UNITS else ("amx", 2)
    machine_ = word_machine(unit)
    arguments = {
        "tile_conv2d": (ConvShape(1, 64, 160, 2560, 320, (3, 3), (1, 1), (1, 1, 1, 1)), (1,), machine_, None, 1, ()),
        "tile_matmul": (ConvShape(1, 8192, 1, 5120, 320, (1, 1), (1, 1), (0, 0, 0, 0)), (1,), machine_, None, 1, ()),
        "tile_attention": (AttentionShape(1, 3, 4096, 4096, 40, 40, 0.1, None), machine_),
        "group_norm": (GroupNormShape(1, 4096, 320, 32, 1e-5), "silu", machine_, ()),
    }[name]
    own = make(name, arguments, {}).script()
    columns = {"tile_matmul": {"columns"}}.get(name, set())  # a multiply is a picture one pixel wide
    for field, values in choices(TUNABLE[name].tiling).items():
        if field not in columns:
            assert any(make(name, arguments, {field: value}).script() != own for value in values[1:]), field
    with pytest.raises(ValueError, match="no"):
        make(name, arguments, {next(iter(choices(TUNABLE[name].tiling))): 12345})


def test_arguments_as_text():
    arguments = (ConvShape(1, 8, 8, 32, 4, (3, 3), (1, 1), (1, 1, 1, 1)), (1, 64), machine(16, 32), None, 1, (16, 16))
    assert decode(encode(arguments)) == arguments and encode(arguments) == encode(decode(encode(arguments)))
    for text in ("{}", "3", '[{"type": "Path"}]', '[{"kind": 1}]', "[", '[{"type": "ConvShape", "batch": 1}]'):
        with pytest.raises((ValueError, TypeError, KeyError)):
            decode(text)
