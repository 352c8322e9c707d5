"""The target of this machine, on made-up machines: it has what the machine has, whatever LLVM calls the CPU."""

import json

import pytest
from machines import (
    APPLE,
    GRAVITON_2,
    GRAVITON_3,
    HASWELL,
    ICE_LAKE,
    RASPBERRY_4,
    RASPBERRY_5,
    SKYLAKE_X,
    XEON,
    XEON_AMX,
    XEON_AVX2,
    ZEN_2,
    ZEN_3,
    ZEN_4,
    ZEN_5,
    cpuinfo,
    stand_in,
)
from tvm.target import Target, codegen

from compiler import target as module
from compiler.target import native_options, resolve_target, why_not_here
from utils import targets
from utils.errors import UserError
from utils.features import ARM, HIDE, X86, consistent, instruction_sets, normalise

ON_X86 = pytest.mark.skipif(targets.architecture() != "x86_64", reason="the host's target is x86's")


def llvm(name, triple=None, mattr=()):
    """Return what LLVM takes a CPU to have."""
    options = {"kind": "llvm", "mcpu": name, "mtriple": triple or "x86_64-linux-gnu"}
    return {str(f) for f in codegen.llvm_get_cpu_features(Target(options | ({"mattr": list(mattr)} if mattr else {})))}


def resolved(name, own, triple=None):
    """Return the instruction sets of the target that a machine gets."""
    options = native_options(name, llvm(name, triple), own)
    return set(instruction_sets(llvm(options["mcpu"], triple, options.get("mattr", ()))))


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("emeraldrapids", XEON_AMX),
        ("emeraldrapids", XEON),
        ("emeraldrapids", XEON_AVX2),
        ("rocketlake", XEON_AMX),
        ("generic", ZEN_5),
        ("x86-64", HASWELL),
        ("znver2", ZEN_2),
        ("znver3", ZEN_3),
        ("znver4", ZEN_4),
        ("znver5", ZEN_5),
        ("znver5", ZEN_2),
        ("skylake-avx512", SKYLAKE_X),
        ("icelake-server", ICE_LAKE),
        ("icelake-server", HASWELL),
        ("haswell", HASWELL),
        ("haswell", HASWELL.replace(" avx2", "").replace(" fma", "").replace(" movbe", "")),
        ("diamondrapids", HASWELL),
        ("skylake", "fpu sse sse2"),
    ],
)
def test_x86_machines(name, flags):
    own = instruction_sets(flags.split())
    assert resolved(name, own) == set(own)


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("neoverse-n1", GRAVITON_2),
        ("neoverse-v1", GRAVITON_3),
        ("generic", GRAVITON_3),
        ("cortex-a72", RASPBERRY_4),
        ("cortex-a76", RASPBERRY_5),
        ("apple-m1", APPLE),
        ("apple-m4", APPLE),
        ("generic", APPLE),
    ],
)
def test_arm_machines(name, flags):
    own = consistent(instruction_sets(flags.split()))
    assert resolved(name, own, "aarch64-linux-gnu") == own


@pytest.mark.parametrize("table", [X86, ARM])
def test_what_needs_which_is_as_in_llvm(table):
    """Whatever one set is missing, LLVM arrives at the same of the others."""
    triple = "aarch64-linux-gnu" if table is ARM else None
    all_sets = {normalise(name) for name in table}
    for missing in sorted(all_sets - {"neon"}):
        own = consistent(all_sets - {missing})
        assert resolved("generic", own, triple) == own, missing


@pytest.mark.parametrize(
    ("name", "has", "lacks"), [("sapphirerapids", "avx512f", "amxtile"), ("znver4", "avx512bf16", "amxtile")]
)
def test_where_the_system_does_not_tell_llvm_is_trusted_but_for_amx(monkeypatch, name, has, lacks):
    monkeypatch.delenv(HIDE, raising=False)
    assert has in resolved(name, None) and lacks not in resolved(name, None)
    monkeypatch.setenv(HIDE, "avx512")
    assert has not in resolved(name, None) and "avx2" in resolved(name, None)


@ON_X86
@pytest.mark.parametrize(
    ("name", "flags", "permitted", "hide", "lanes", "unit"),
    [
        ("emeraldrapids", XEON_AMX, True, "", 16, "amx"),
        ("emeraldrapids", XEON_AMX, False, "", 16, None),
        ("emeraldrapids", XEON_AMX, True, "amx", 16, None),
        ("emeraldrapids", XEON_AMX, True, "amx,avx512", 8, None),
        ("emeraldrapids", XEON, True, "", 16, None),
        ("no-such-cpu", XEON_AMX, True, "", 16, "amx"),
        ("generic", ZEN_5, True, "", 16, None),
        ("znver2", ZEN_2, True, "", 8, None),
        ("znver2", ZEN_2, True, "avx", 4, None),
        ("haswell", None, True, "", 8, None),
        ("sapphirerapids", None, True, "", 16, None),
    ],
)
def test_the_hosts_target_runs_here(monkeypatch, tmp_path, name, flags, permitted, hide, lanes, unit):
    stand_in(monkeypatch, tmp_path, None if flags is None else cpuinfo(flags), permitted)
    monkeypatch.setenv(HIDE, hide)
    monkeypatch.setattr(module.codegen, "llvm_get_system_cpu", lambda: name)
    cpu = resolve_target("llvm")
    assert why_not_here(cpu) is None and (cpu.machine.lanes, cpu.machine.unit) == (lanes, unit)


@ON_X86
class TestNamed:
    @pytest.fixture(autouse=True)
    def haswell(self, monkeypatch, tmp_path):
        stand_in(monkeypatch, tmp_path, cpuinfo(HASWELL))

    @pytest.mark.parametrize(
        ("name", "lanes", "why"),
        [
            ("x86-64-v2", 4, None),
            ("x86-64-v3", 8, None),
            ("x86-64-v4", 16, "this CPU lacks avx512bw, avx512cd, avx512dq, avx512f, avx512vl"),
            ("cortex-a76", 4, "this is no aarch64-linux-gnu but x86_64"),
            ("apple-m1", 4, "this is no aarch64-linux-gnu but x86_64"),
        ],
    )
    def test_this_machine_and_others(self, name, lanes, why):
        cpu = resolve_target("llvm", cpu=name)
        found = why_not_here(cpu)
        assert cpu.machine.lanes == lanes and cpu.target.attrs["mcpu"] == name
        assert found is None if why is None else found.startswith(why)

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("haswel", ["did you mean haswell"]),
            ("x86-64-v5", ["x86-64-v4", "x86-64-v3"]),
            ("cortexa76", ["cortex-a76"]),
            ("", ["--cpu ''", "native"]),
            ("zzzz", ["native, x86-64-v2"]),
            ("i386", ["--cpu i386", "64"]),
        ],
    )
    def test_a_name_that_is_none_is_one_line(self, name, words):
        with pytest.raises(UserError, match="--cpu") as refused:
            resolve_target("llvm", cpu=name)
        assert "\n" not in str(refused.value) and all(word in str(refused.value) for word in words), refused.value

    def test_bfloat16_names_what_helps(self):
        with pytest.raises(UserError, match=r"--dtype bfloat16.*--dtype float32.*--cpu"):
            resolve_target("llvm", "bfloat16", "x86-64-v3")
        assert resolve_target("llvm", "bfloat16", "znver4").machine.unit == "dot"
        assert resolve_target("llvm", "bfloat16", "sapphirerapids").machine.unit == "amx"

    def test_json_of_another_machine(self):
        cpu = resolve_target(json.dumps({"kind": "llvm", "mcpu": "haswell", "mtriple": "x86_64-apple-macos"}))
        assert why_not_here(cpu).startswith("this is no x86_64-apple-macos")
