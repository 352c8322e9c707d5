"""Every optimisation can be left out, alone or with others: the result stays and the code changes."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_component import CPU, WITHOUT_UNIT, AnotherTiling, after, block_component, parity

from compiler.optimisations import ALL, OPTIMISATIONS, enabled
from utils.errors import UserError


def code(disable, cpu=CPU):
    """Return the text of the block's module as it goes to LLVM."""
    return after(block_component(), "rest", disable, cpu, AnotherTiling()).script()


@pytest.fixture(scope="module")
def all_on():
    return code("")


WINOGRAD = replace(WITHOUT_UNIT, machine=replace(WITHOUT_UNIT.machine, winograd_tile=2))
WHERE = {"split_float32": (CPU, ""), "winograd": (WINOGRAD, ""), "fused_softmax": (WITHOUT_UNIT, "flash_attention,")}


@pytest.mark.parametrize("name", [*OPTIMISATIONS, ALL])
def test_each_changes_the_code(name):
    """Where it has something to do: not where a better one takes its place."""
    if name == "split_float32" and not CPU.machine.unit:
        pytest.skip("this CPU has no AMX")
    cpu, others = WHERE.get(name, (WITHOUT_UNIT, ""))
    assert code(others + name, cpu) != code(others, cpu), f"--disable {name} changes nothing"


@pytest.mark.long
@pytest.mark.parametrize("name", OPTIMISATIONS)
def test_without_one_the_result_stays(name, tmp_path):
    measured = parity(block_component(), tmp_path, name).psnr
    assert min(measured.values()) >= 60


@settings(deadline=None, max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.sets(st.sampled_from(list(OPTIMISATIONS)), min_size=1, max_size=len(OPTIMISATIONS)))
def test_any_subset(names, tmp_path_factory):
    measured = parity(block_component(), tmp_path_factory.mktemp("subset"), ",".join(sorted(names))).psnr
    assert min(measured.values()) >= 60


def test_all_is_every_single_one():
    assert code(ALL) == code(",".join(OPTIMISATIONS))
    assert not any(enabled(ALL).values()) and all(enabled("").values())
    assert enabled(" layout , fusion,") == {name: name not in ("layout", "fusion") for name in OPTIMISATIONS}


@pytest.mark.parametrize(("text", "word"), [("layuot", "did you mean layout"), ("fusion,packed", "'packed'")])
def test_unknown_names_are_refused(text, word):
    with pytest.raises(UserError, match="--disable") as refused:
        enabled(text)
    assert word in str(refused.value) and all(name in str(refused.value) for name in [*OPTIMISATIONS, ALL])


def test_the_same_build_twice_is_the_same_code(all_on):
    assert code("") == all_on
