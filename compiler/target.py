"""--target: which machine the native code is for."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from tvm.target import Target, codegen

from compiler.kernels.register_tile import Machine
from utils.cpu import host_instruction_sets, instruction_sets, permit_tiles, physical_cores
from utils.errors import UserError, choose
from utils.targets import parse_target

TILES = ("amx-tile", "amx-bf16")  # LLVM's names
DOT = "avx512bf16"


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
    options = {"kind": "llvm", "mcpu": codegen.llvm_get_system_cpu(), "num-cores": physical_cores()}
    found = set(TILES if permit_tiles() else ())
    found.update({DOT}.intersection(host_instruction_sets() or ()))
    if found:  # LLVM may take the CPU for an older one
        options["mattr"] = [f"+{feature}" for feature in sorted(found)]
    return options


def _unit(features: set[str], dtype: str) -> str | None:
    """Return the unit that multiplies bfloat16, where it pays: a dot product does not if float32 has to be split."""
    if "avx512f" in features and features.issuperset(TILES):
        return "amx"
    if dtype != "bfloat16":
        return None
    if DOT in features:
        return "dot"
    raise UserError("--dtype bfloat16: the target has neither AMX (amx-tile, amx-bf16) nor avx512_bf16; use float32")


def resolve_target(text: str, dtype: str = "float32") -> Cpu:
    """Turn the values of --target and --dtype into a CPU target.

    Raises:
        UserError: an unknown name, JSON that is no TVM target, an unknown CPU, or bfloat16 on a CPU that can't.
    """
    options = parse_target(text)
    if options is None:
        options = _host()
    options.setdefault("num-cores", physical_cores())
    _check_triple_and_cpu(options)
    try:
        target = Target(options)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"--target {text}: TVM refuses it: {str(error).splitlines()[-1]}") from None
    if options["num-cores"] < 1:
        raise UserError(f"--target {text}: num-cores must be 1 or more")
    features = {str(feature) for feature in codegen.llvm_get_cpu_features(target)}
    lanes = 16 if "avx512f" in features else 8 if "avx" in features else 4
    many = "avx512f" in features or "neon" in features
    unit = _unit(features, dtype)
    parts = 1 if dtype == "bfloat16" else 2
    return Cpu(target, Machine(lanes, 32 if many else 16, int(options["num-cores"]), unit=unit, parts=parts))


def require_runs_here(cpu: Cpu) -> None:
    """Refuse a target whose code this CPU can't run: packing and verification run the code that was built.

    Raises:
        UserError: naming the machine or the instruction sets that are missing.
    """
    machine = str(cpu.target.attrs.get("mtriple", "")).partition("-")[0]
    if machine and machine != platform.machine():
        raise UserError(f"--target: {machine} code can't be verified on this {platform.machine()}; build it there")
    host = host_instruction_sets()
    missing = sorted(set(cpu.features) - set(host)) if host is not None else []
    if missing:
        raise UserError(
            f"--target: this CPU lacks {', '.join(missing)}, so the build can't be verified; build it there"
        )


def _check_triple_and_cpu(options: dict) -> None:
    """Refuse what LLVM would crash on (an unknown machine) or replace with a warning (an unknown CPU)."""
    machine = {key: str(value) for key, value in options.items() if key == "mtriple"}
    if machine:
        known = [str(name) for name in codegen.llvm_get_targets()]
        architecture = machine["mtriple"].partition("-")[0]
        if not architecture.startswith((*known, "i686", "amd64")):
            choose("--target mtriple", architecture, known)
    if "mcpu" in options:
        known = [str(name) for name in codegen.llvm_get_cpu_archlist(Target({"kind": "llvm", **machine}))]
        choose("--target mcpu", str(options["mcpu"]), known)
