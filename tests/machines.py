"""Machines of our own making: what their /proc/cpuinfo says of features, and who they are."""

from pathlib import Path

import pytest

from utils import cpu

_BASE = "fpu cx8 sse sse2 syscall nx lm pni ssse3 cx16 sse4_1 sse4_2 popcnt lahf_lm"
HASWELL = _BASE + " movbe aes pclmulqdq xsave avx f16c rdrand abm fma bmi1 avx2 bmi2"
SKYLAKE_X = HASWELL + " 3dnowprefetch adx avx512f avx512dq avx512cd avx512bw avx512vl"
ICE_LAKE = SKYLAKE_X + (
    " sha_ni avx512ifma avx512vbmi avx512_vbmi2 gfni vaes vpclmulqdq avx512_vnni avx512_bitalg avx512_vpopcntdq"
)
XEON = ICE_LAKE + " avx_vnni avx512_bf16 avx512_fp16"  # family 6, model 207, whose AMX a hypervisor hides
XEON_AMX = XEON + " amx_bf16 amx_tile amx_int8"
XEON_AVX2 = " ".join(flag for flag in XEON_AMX.split() if not flag.startswith(("avx512", "amx")))
ZEN_2 = HASWELL + " sse4a 3dnowprefetch adx sha_ni"
ZEN_3 = ZEN_2 + " vaes vpclmulqdq"
ZEN_4 = ZEN_3 + (
    " avx512f avx512dq avx512ifma avx512cd avx512bw avx512vl avx512_bf16 avx512vbmi avx512_vbmi2 gfni avx512_vnni"
    " avx512_bitalg avx512_vpopcntdq"
)
ZEN_5 = ZEN_4 + " avx_vnni avx512_vp2intersect"
GRAVITON_2 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp ssbs"
GRAVITON_3 = (
    GRAVITON_2 + " sha3 sm3 sm4 sha512 sve asimdfhm dit uscat ilrcpc flagm jscvt fcma svei8mm svebf16 i8mm bf16"
)
RASPBERRY_4 = "fp asimd evtstrm crc32 cpuid"
RASPBERRY_5 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
APPLE = GRAVITON_2 + " sha3 sha512 asimdfhm dit uscat ilrcpc flagm jscvt fcma frint sb paca"


def cpuinfo(flags: str, name: str = "Some CPU", cores: int = 2) -> str:
    """Return /proc/cpuinfo of an x86 machine."""
    blocks = (
        f"processor\t: {i}\nmodel name\t: {name}\nphysical id\t: 0\ncore id\t\t: {i}\nflags\t\t: {flags}\n"
        for i in range(cores)
    )
    return "\n".join(blocks) + "\n"


def arm_cpuinfo(flags: str, maker: str, *parts: str) -> str:
    """Return /proc/cpuinfo of an Arm with a core of each of ``parts``."""
    blocks = (
        f"processor\t: {i}\nBogoMIPS\t: 108.00\nFeatures\t: {flags}\nCPU implementer\t: {maker}\n"
        f"CPU architecture: 8\nCPU part\t: {part}\n"
        for i, part in enumerate(parts)
    )
    return "\n".join(blocks) + "\n"


def stand_in(patch: pytest.MonkeyPatch, folder: Path, text: str | None, permitted: bool = True) -> None:
    """Have this process believe that its machine's /proc/cpuinfo has ``text``, or None where there is none."""
    path = folder / "cpuinfo"
    if text is not None:
        path.write_text(text)
    patch.setattr(cpu, "CPUINFO", path)
    patch.setattr(cpu, "_ask_for_tiles", lambda: permitted)
    patch.delenv("TVMERGE_HIDE_FEATURES", raising=False)
