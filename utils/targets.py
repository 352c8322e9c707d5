"""--target, --cpu, --cuda-arch and --dtype: which machine code is for and what it computes in, told without TVM."""

from __future__ import annotations

import json
import platform

from utils.errors import UserError, choose
from utils.gpu import ARCHS, has_bfloat16, nearest_arch, present_arch

TARGETS = ("auto", "llvm", "cuda")
KINDS = ("llvm", "cuda")
CPU_DTYPES = ("float32", "bfloat16")
GPU_DTYPES = ("float16", "bfloat16")
NATIVE = "native"  # the CPU that is here, of --cpu
ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}  # LLVM's names by those of other systems
SYSTEMS = {"linux": "Linux", "darwin": "Darwin", "macos": "Darwin", "windows": "Windows", "win32": "Windows"}


def architecture(machine: str | None = None) -> str:
    """Return LLVM's name of an architecture, by default this machine's."""
    name = (platform.machine() if machine is None else machine).lower()
    return ARCHITECTURES.get(name, name)


def runs_on_this_system(triple: str) -> bool:
    """Tell whether architecture and system of a triple, as in ``aarch64-linux-gnu``, are this machine's."""
    machine, _, rest = triple.partition("-")
    named = {system for word, system in SYSTEMS.items() if word in rest}
    return architecture(machine) == architecture() and "android" not in rest and named <= {platform.system()}


def parse_target(text: str) -> dict | None:
    """Return the options of a TVM target in JSON, or None for a name.

    Raises:
        UserError: an unknown name, no JSON, or JSON of another kind.
    """
    if not text.lstrip().startswith("{"):
        choose("--target", text, TARGETS)
        return None
    try:
        options = json.loads(text)
    except ValueError as error:
        raise UserError(f"--target {text}: not valid JSON ({error})") from None
    choose("--target kind", str(options.get("kind")), KINDS)
    return options


def _check_cpu(target: str, options: dict | None, cuda_arch: str | None) -> None:
    """Refuse --cpu beside what names another machine."""
    if cuda_arch is not None:
        raise UserError("--cpu and --cuda-arch name two machines; leave one of them out")
    if target == "cuda" or (options is not None and options["kind"] == "cuda"):
        raise UserError("--cpu does nothing for cuda; leave it out, or use --target llvm")
    if options is not None:
        raise UserError(f"--cpu and --target {target} name two CPUs; leave one of them out")


def gpu_arch(target: str, cuda_arch: str | None, cpu: str | None = None) -> str | None:
    """Return the architecture of the GPU that code is made for, or None where it is for a CPU: where ``cpu`` names one.

    Raises:
        UserError: an unknown architecture, none given nor present, or one given for a CPU.
    """
    if cuda_arch is not None:
        choose("--cuda-arch", cuda_arch, ARCHS)
    options = parse_target(target)
    if cpu is not None:
        _check_cpu(target, options, cuda_arch)
        return None
    if options is not None and options["kind"] == "cuda":
        return _of_json(target, options, cuda_arch)
    if options is not None or target == "llvm":
        if cuda_arch is not None:
            raise UserError("--cuda-arch does nothing without --target cuda; add it, or leave --cuda-arch out")
        return None
    if cuda_arch is not None:
        return cuda_arch
    present = present_arch()
    found = None if present is None else nearest_arch(present)
    if found is None and target == "cuda":
        why = "no GPU was found here" if present is None else f"the GPU here is {present}, which has no kernels yet"
        raise UserError(f"--target cuda: {why}; name an architecture by --cuda-arch: {', '.join(ARCHS)}")
    return found


def _of_json(target: str, options: dict, cuda_arch: str | None) -> str:
    if extra := sorted(set(options) - {"kind", "arch"}):
        raise UserError(f"--target {target}: {extra[0]} is not known for cuda, which takes kind and arch")
    arch = options.get("arch", cuda_arch)
    if arch is None:
        raise UserError(
            f"--target {target}: name an architecture, as in {json.dumps({'kind': 'cuda', 'arch': 'sm_90'})}"
        )
    if cuda_arch not in (None, arch):
        raise UserError(f"--cuda-arch {cuda_arch} and --target {target} differ; leave one of them out")
    return choose("--target arch", str(arch), ARCHS)


def precision(arch: str | None, dtype: str | None) -> str:
    """Return what is computed in, --dtype or the usual: float32, or float16 on a GPU of the architecture ``arch``.

    Raises:
        UserError: the machine can't.
    """
    choices = CPU_DTYPES if arch is None else GPU_DTYPES
    if dtype is None:
        return choices[0]
    if dtype not in choices and dtype in CPU_DTYPES + GPU_DTYPES:
        where = "a CPU" if arch is None else "cuda"
        raise UserError(f"--dtype {dtype} is not to be had on {where}; use {' or '.join(choices)}")
    choose("--dtype", dtype, choices)
    if arch is not None and dtype == "bfloat16" and not has_bfloat16(arch):
        raise UserError(f"--dtype bfloat16 needs sm_80 or newer, not {arch}; use float16")
    return dtype
