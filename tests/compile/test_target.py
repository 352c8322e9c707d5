"""--target: what is accepted, what is refused, and code for another kind of CPU."""

import json

import pytest
import tvm

from compiler.kernels.matmul import matmul
from compiler.target import resolve_target
from utils.cpu import host_instruction_sets, physical_cores
from utils.errors import UserError

ARM = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "neoverse-n1", "num-cores": 4}


@pytest.mark.parametrize("name", ["auto", "llvm"])
def test_this_cpu(name):
    cpu = resolve_target(name)
    assert cpu.target.kind.name == "llvm" and cpu.target.attrs["mcpu"]
    assert cpu.machine.cores == physical_cores()
    host = host_instruction_sets()
    assert host is not None and set(cpu.features) <= set(host), "code for this CPU needs nothing that it lacks"


@pytest.mark.parametrize(
    ("mcpu", "lanes", "registers", "feature"),
    [
        ("skylake-avx512", 16, 32, "avx512f"),
        ("znver5", 16, 32, "avx512bf16"),
        ("haswell", 8, 16, "avx2"),
        ("x86-64", 4, 16, None),
    ],
)
def test_json_targets(mcpu, lanes, registers, feature):
    cpu = resolve_target(json.dumps({"kind": "llvm", "mcpu": mcpu, "num-cores": 3}))
    assert (cpu.machine.lanes, cpu.machine.registers, cpu.machine.cores) == (lanes, registers, 3)
    assert feature in cpu.features if feature else not any(f.startswith("avx") for f in cpu.features)


def test_json_without_cores_takes_this_machines():
    assert resolve_target(' {"kind": "llvm", "mcpu": "haswell"}').machine.cores == physical_cores()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("llvn", ["--target", "'llvn'", "did you mean llvm", "auto, llvm, cuda"]),
        ("", ["--target", "auto, llvm, cuda"]),
        ("{", ["--target {", "JSON"]),
        ("{}", ["--target kind", "llvm"]),
        ('{"kind": "opencl"}', ["--target kind", "'opencl'"]),
        ('{"kind": ["llvm"]}', ["--target kind"]),
        ('{"kind": "llvm", "mcpu": "haswel"}', ["--target mcpu", "'haswel'", "did you mean haswell"]),
        ('{"kind": "llvm", "no-such-option": 1}', ["--target", "no-such-option"]),
        ('{"kind": "llvm", "num-cores": "four"}', ["--target", "num-cores"]),
        ('{"kind": "llvm", "num-cores": 0}', ["--target", "num-cores"]),
        ('{"kind": "llvm", "num-cores": -2}', ["--target", "num-cores"]),
        ('{"kind": "llvm", "mtriple": "no-such-machine"}', ["--target mtriple", "aarch64"]),
    ],
)
def test_bad_targets_are_one_clear_line(text, words):
    with pytest.raises(UserError) as refused:
        resolve_target(text)
    message = str(refused.value)
    assert "\n" not in message.strip() and all(word in message for word in words), message


def test_a_kernel_for_arm_compiles_to_an_object(tmp_path):
    cpu = resolve_target(json.dumps(ARM))
    assert (cpu.machine.lanes, cpu.machine.registers, cpu.machine.cores) == (4, 32, 4)
    assert {"neon", "dotprod"} <= set(cpu.features)
    kernel = matmul(13, 7, 9, (1,), cpu.machine).with_attr("global_symbol", "kernel")
    library = tvm.compile(tvm.IRModule({"kernel": kernel}), target=cpu.target)
    library.export_library(str(tmp_path / "kernel.o"), fcompile=_keep_object)
    header = (tmp_path / "kernel.o").read_bytes()[:20]
    assert header[:4] == b"\x7fELF" and int.from_bytes(header[18:20], "little") == 183  # EM_AARCH64


def _keep_object(output, objects, **_options):
    with open(objects[0], "rb") as source, open(output, "wb") as target:
        target.write(source.read())
