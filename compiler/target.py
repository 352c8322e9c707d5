"""--target: which machine the native code is for."""

from __future__ import annotations

import json
from dataclasses import dataclass

import tvm
from tvm.target import Target, codegen

from compiler.kernels.register_tile import Machine
from utils.cpu import instruction_sets, physical_cores
from utils.errors import UserError, choose

KINDS = ("auto", "llvm", "cuda")


@dataclass(frozen=True)
class Cpu:
    """A CPU target: LLVM's options and what the kernels need to know of it."""

    target: Target
    machine: Machine

    @property
    def features(self) -> list[str]:
        """Return the vector instruction sets that the generated code may use."""
        return instruction_sets([str(feature) for feature in codegen.llvm_get_cpu_features(self.target)])


def _host() -> dict:
    return {"kind": "llvm", "mcpu": codegen.llvm_get_system_cpu(), "num-cores": physical_cores()}


def resolve_target(text: str) -> Cpu:
    """Turn the value of --target into a CPU target.

    Raises:
        UserError: an unknown name, JSON that is no TVM target, an unknown CPU, or cuda.
    """
    if text.lstrip().startswith("{"):
        options = _parse_json(text)
    elif choose("--target", text, KINDS) == "cuda":
        raise UserError("--target cuda is not supported by this version; use --target llvm")
    else:
        options = _host()
    options.setdefault("num-cores", physical_cores())
    try:
        target = Target(options)
    except (ValueError, TypeError, RuntimeError, tvm.error.TVMError) as error:
        raise UserError(f"--target {text}: TVM refuses it: {str(error).splitlines()[-1]}") from None
    known = [str(name) for name in codegen.llvm_get_cpu_archlist(target)]
    if "mcpu" in options:
        choose("--target mcpu", str(options["mcpu"]), known)
    bits = int(codegen.llvm_get_vector_width(target))
    lanes = min(16, max(4, bits // 32))
    many = lanes == 16 or "neon" in codegen.llvm_get_cpu_features(target)
    return Cpu(target, Machine(lanes, 32 if many else 16, int(options["num-cores"])))


def _parse_json(text: str) -> dict:
    try:
        options = json.loads(text)
    except ValueError as error:
        raise UserError(f"--target {text}: not valid JSON ({error})") from None
    kind = options.get("kind")
    choose("--target kind", str(kind), ("llvm",))
    return options
