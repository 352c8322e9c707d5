"""--target and --cpu: which machine the native code is for."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from tvm.target import Target, codegen

from compiler.kernels.register_tile import Machine
from utils.cpu import Caches, cache_sizes, host_instruction_sets, physical_cores
from utils.errors import UserError, choose
from utils.features import LLVM, instruction_sets, normalise, without_hidden
from utils.targets import NATIVE, architecture, parse_target, runs_on_this_system

TILES = ("amx-tile", "amx-bf16")  # LLVM's names
DOT = "avx512bf16"
TRIPLES = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu"}  # of code for another architecture
GENERIC = "generic"
MOST_SHARED = 16 << 20  # bytes of the last cache level for a core: other machines share it with this virtual one


@dataclass(frozen=True)
class Cpu:
    """A CPU target: LLVM's options and what the kernels need to know of it."""

    target: Target
    machine: Machine

    @property
    def features(self) -> list[str]:
        """Return the instruction sets that the generated code may use, by normal name."""
        return instruction_sets(_llvm_features(self.target))

    @property
    def triple(self) -> str:
        """Return the triple of another machine, or nothing for this one."""
        return str(self.target.attrs.get("mtriple", ""))


def _llvm_features(target: Target) -> set[str]:
    return {str(feature) for feature in codegen.llvm_get_cpu_features(target)}


def _cpus(triple: str = "") -> list[str]:
    """Return the names of CPUs that LLVM knows of a triple's architecture, by default of this machine's."""
    options = {"kind": "llvm", "mtriple": triple} if triple else {"kind": "llvm"}
    return [str(name) for name in codegen.llvm_get_cpu_archlist(Target(options))]


def native_options(name: str, implied: Iterable[str], own: Iterable[str] | None) -> dict[str, Any]:
    """Return the options of a target for this machine: what it has is on, what it lacks is off.

    ``name`` is LLVM's of the CPU and ``implied`` are the features that LLVM takes it to have. A hypervisor or the
    system may hide some of them, and LLVM may take a new CPU for an older one. ``own`` are the instruction sets that
    code may use, by normal name, or None where the system does not tell; then LLVM is trusted, but for AMX, which has
    to be permitted, and for what the user hides.
    """
    known = {normalise(feature): feature for feature in implied}
    expected = set(instruction_sets(known))
    if own is None:
        own = {feature for feature in without_hidden(expected) if not feature.startswith("amx")}
    wanted = set(own)
    off = sorted(f"-{known[feature]}" for feature in expected - wanted)
    on = sorted(f"+{LLVM[feature]}" for feature in wanted - expected if feature in LLVM)
    return {"kind": "llvm", "mcpu": name, **({"mattr": off + on} if off or on else {})}


def _host() -> dict[str, Any]:
    name = str(codegen.llvm_get_system_cpu())
    if name not in _cpus():
        name = GENERIC
    return native_options(name, _llvm_features(Target({"kind": "llvm", "mcpu": name})), host_instruction_sets())


def _named(name: str) -> dict[str, Any]:
    """Return the options of --cpu ``name``, of this machine's architecture or of another one that knows the name.

    Raises:
        UserError: an unknown name; the closest ones are named.
    """
    if name == NATIVE:
        return _host()
    own = TRIPLES.get(architecture(), str(codegen.llvm_get_system_triple()))
    if codegen.llvm_is_valid_cpu(name, own):
        return {"kind": "llvm", "mcpu": name}
    others = [triple for machine, triple in TRIPLES.items() if machine != architecture()]
    for triple in others:
        if codegen.llvm_is_valid_cpu(name, triple):
            return {"kind": "llvm", "mcpu": name, "mtriple": triple}
    known = [NATIVE, *_cpus(), *(cpu for triple in others for cpu in _cpus(triple))]
    close = list(dict.fromkeys(get_close_matches(name.lower(), known, n=4)))
    meant = f" (did you mean {', '.join(close)}?)" if close else ""
    raise UserError(
        f"--cpu {name!r} is unknown{meant}; use native, x86-64-v2, x86-64-v3, x86-64-v4, or LLVM's name of a CPU, as "
        "in haswell or cortex-a76"
    )


def _unit(features: set[str], dtype: str) -> str | None:
    """Return the unit that multiplies bfloat16, where it pays: a dot product does not if float32 has to be split."""
    if "avx512f" in features and features.issuperset(TILES):
        return "amx"
    if dtype != "bfloat16":
        return None
    if DOT in features:
        return "dot"
    raise UserError(
        "--dtype bfloat16: the target has neither AMX (amx-tile, amx-bf16) nor avx512_bf16; use --dtype float32, or "
        "name a CPU that has them by --cpu, as in sapphirerapids or znver4"
    )


def resolve_target(text: str, dtype: str = "float32", cpu: str | None = None) -> Cpu:
    """Turn the values of --target, --dtype and --cpu into a CPU target.

    Raises:
        UserError: an unknown name, JSON that is no TVM target, an unknown CPU, or bfloat16 on a CPU that can't.
    """
    given = parse_target(text)
    options = dict(_named(NATIVE if cpu is None else cpu) if given is None else given)
    options.setdefault("num-cores", physical_cores())
    if given is not None:
        _check_triple_and_cpu(options)
    try:
        target = Target(options)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"--target {text}: TVM refuses it: {str(error).splitlines()[-1]}") from None
    if options["num-cores"] < 1:
        raise UserError(f"--target {text}: num-cores must be 1 or more")
    features = _llvm_features(target)
    if "64bit-mode" in features and "64bit" not in features:  # LLVM would end the process
        raise UserError(f"--cpu {options['mcpu']} has no 64 bits, which code here is of; name another, as in x86-64-v3")
    native = given is None and cpu in (None, NATIVE)
    return Cpu(target, _machine(features, int(options["num-cores"]), cache_sizes() if native else Caches(), dtype))


def _machine(features: set[str], cores: int, caches: Caches, dtype: str) -> Machine:
    """Return what kernels need to know of a CPU that has these features."""
    lanes = 16 if "avx512f" in features else 8 if "avx" in features else 4
    many = "avx512f" in features or "neon" in features
    registers, unit, parts = 32 if many else 16, _unit(features, dtype), 1 if dtype == "bfloat16" else 2
    if unit is not None:  # beside tiles of words lies what they are made of
        return Machine(lanes, registers, cores, caches.l2 // 2, unit, parts)
    shared = min(max(caches.l3 // cores, caches.l2), MOST_SHARED)
    return Machine(lanes, registers, cores, caches.l2, parts=parts, shared=shared)


def why_not_here(cpu: Cpu) -> str | None:
    """Return why this machine can't run code for ``cpu``, or None where it can."""
    if cpu.triple and not runs_on_this_system(cpu.triple):
        return f"this is no {cpu.triple} but {architecture()} {platform.system()}"
    host = host_instruction_sets()
    missing = sorted(set(cpu.features) - set(host)) if host is not None else []
    return f"this CPU lacks {', '.join(missing)}" if missing else None


def packing_host(cpu: Cpu) -> Target:
    """Return the target of this machine, which is to pack parameters for another one.

    Raises:
        UserError: it can't pack for that.
    """
    here = resolve_target("llvm")
    if cpu.machine.unit == "amx" and "avx512f" not in here.features:
        raise UserError(
            "--cpu: weights for AMX are packed by AVX-512, which this CPU lacks; build it where AVX-512 is, or with "
            "--disable split_float32"
        )
    return here.target


def require_runs_here(cpu: Cpu) -> None:
    """Refuse a target whose code this CPU can't run: tuning runs what was built.

    Raises:
        UserError: naming the machine or the instruction sets that are missing.
    """
    if (why := why_not_here(cpu)) is not None:
        raise UserError(f"--tune-minutes: {why}, so nothing can be timed; tune for --cpu native, or on such a machine")


def _check_triple_and_cpu(options: dict[str, Any]) -> None:
    """Refuse what LLVM would crash on (an unknown machine) or replace with a warning (an unknown CPU)."""
    triple = str(options.get("mtriple", ""))
    if triple:
        known = [str(name) for name in codegen.llvm_get_targets()]
        machine = triple.partition("-")[0]
        if not machine.startswith((*known, "i686", "amd64")):
            choose("--target mtriple", machine, known)
    if "mcpu" in options:
        choose("--target mcpu", str(options["mcpu"]), _cpus(triple))
