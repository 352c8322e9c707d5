"""Whatever tuning may choose of a kernel, the result stays; and a choice travels as text."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_runner import UNITS, machine, needs_unit, run_kernel, word_machine
from small_component import CPU

from compiler.kernels.conv2d import ConvShape
from compiler.kernels.flash_attention import AttentionShape
from compiler.kernels.group_norm import GroupNormShape
from compiler.kernels.tiling import choices
from compiler.kernels.tunable import TUNABLE, decode, encode, make
from compiler.tuning import reference
from compiler.tuning.measure import random_array
from compiler.tuning.reference import agrees


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
    words = random_array("uint32", (2, 9 * 3, 2, 2, 16, 16), np.random.default_rng(1))  # panels, blocks, parts
    inputs = [normal(2, *size, 96), words, normal(1, 45)]
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


def arguments_of(name, large, unit=UNITS[-1] if UNITS else ("amx", 2)):
    """Return arguments of a kernel, of a size at which each choice matters or of a small one."""
    machine_ = word_machine(unit) if name.startswith("tile") else machine(16, 32)
    one, same, none = (1, 1), (1, 1, 1, 1), (0, 0, 0, 0)
    conv = (
        ConvShape(1, 64, 160, 2560, 320, (3, 3), one, same) if large else ConvShape(2, 9, 7, 64, 96, (3, 3), one, same)
    )
    rows, columns = (8192, 5120) if large else (77, 64)
    picture = ConvShape(1, rows, 1, columns, 320, one, one, none)
    tokens = 4096 if large else 90
    attention = AttentionShape(1, 3, tokens, tokens, 40, 40, 0.1, None)
    if name.startswith("winograd"):
        return conv, (1,), machine_, int(name[-1])
    return {
        "tile_conv2d": (conv, (1,), machine_, None, 1, ()),
        "tile_matmul": (picture, (1, rows), machine_, "geglu" if not large else None, 1, ()),
        "tile_winograd": (conv, (1,), word_machine(("amx", 2)), ()),
        "tile_attention": (attention, machine_),
        "matmul": (rows, columns, 320, (1,), machine_, "silu", 1, ()),
        "conv2d": (conv, (1,), machine_),
        "flash_attention": (attention, 16, 32),
        "group_norm": (GroupNormShape(2, tokens, 320, 32, 1e-5), "silu", machine_, (192, 128)),
    }[name]


KERNELS = [
    name
    for name in TUNABLE
    if ("amx", 2) in UNITS or (UNITS and name != "tile_winograd") or not name.startswith("tile")
]


# By kernel: its version, and the beginning of its code's digest. Where the code has changed, tune a model that spends
# its time there: if other choices are best now, raise the version in ``TUNABLE``, so that old records are not used.
VERSIONS = {
    "tile_conv2d": (1, "51edd5dad4af"),
    "tile_matmul": (1, "151bab570e08"),
    "tile_winograd": (1, "80d87071b718"),
    "tile_attention": (1, "aeb1bebfe6ec"),
    "matmul": (2, "e9ed162b6de0"),
    "conv2d": (1, "2fdb5960f6e2"),
    "winograd_2": (2, "571822a4c614"),
    "winograd_4": (2, "dee730463f8a"),
    "winograd_6": (2, "223cb0c9490c"),
    "flash_attention": (1, "aba8344d1c2f"),
    "group_norm": (1, "6bd7ccc73a18"),
}


@pytest.mark.parametrize("name", TUNABLE)
def test_code_that_has_changed_is_looked_at(name):
    code = make(name, arguments_of(name, large=True, unit=("amx", 2)), {}).script()
    assert (TUNABLE[name].version, hashlib.sha256(code.encode()).hexdigest()[:12]) == VERSIONS[name]


@pytest.mark.parametrize("name", KERNELS)
def test_each_choice_changes_the_code(name):
    """A choice that changes nothing would be measured for nothing."""
    arguments = arguments_of(name, large=True)
    own = make(name, arguments, {}).script()
    idle = {"tile_matmul": {"columns"}}.get(name, set())  # a multiply is a picture one pixel wide
    for field, values in choices(TUNABLE[name].tiling).items():
        if field not in idle:
            assert any(make(name, arguments, {field: value}).script() != own for value in values[1:]), field
    with pytest.raises(ValueError, match="no"):
        make(name, arguments, {next(iter(choices(TUNABLE[name].tiling))): 12345})


@pytest.mark.parametrize("name", KERNELS)
def test_each_choice_agrees_with_numpy(name):
    """And what is wrong does not: the check that \"check\" makes of a database."""
    arguments = arguments_of(name, large=False)
    space = choices(TUNABLE[name].tiling)
    for chosen in ({}, *({field: values[1]} for field, values in space.items()), {f: v[-1] for f, v in space.items()}):
        assert agrees(name, arguments, chosen, CPU.target), chosen


def test_a_wrong_result_does_not_agree(monkeypatch):
    arguments = arguments_of("matmul", large=False)
    monkeypatch.setattr(
        reference, "make", lambda name, given, chosen: make(name, (*given[:5], None, *given[6:]), chosen)
    )
    assert not agrees("matmul", arguments, {}, CPU.target)


def test_arguments_as_text():
    arguments = (ConvShape(1, 8, 8, 32, 4, (3, 3), (1, 1), (1, 1, 1, 1)), (1, 64), machine(16, 32), None, 1, (16, 16))
    assert decode(encode(arguments)) == arguments and encode(arguments) == encode(decode(encode(arguments)))
    asked = replace(machine(16, 32), winograd_tile=4)
    assert encode((asked,)) == encode((machine(16, 32),)), "a record is one of the kernel, whatever the flag says"
    assert "shared" not in encode((machine(16, 32),)), "keys of records that are older than this field have none"
    other = (replace(machine(16, 32), shared=1 << 20),)
    assert decode(encode(other)) == other
    for text in ("{}", "3", '[{"type": "Path"}]', '[{"kind": 1}]', "[", '[{"type": "ConvShape", "batch": 1}]'):
        with pytest.raises((ValueError, TypeError, KeyError)):
            decode(text)
