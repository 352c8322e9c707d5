"""Instruction sets by name: LLVM's names and Linux's, which needs which, and those that the user hides.

A name is normal when it is LLVM's without ``_``, ``.`` and ``-``: ``avx512vnni`` for Linux's ``avx512_vnni``, ``sse42``
for LLVM's ``sse4.2``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from utils.errors import UserError, nearest

HIDE = "TVMERGE_HIDE_FEATURES"
X86 = (  # as LLVM spells them: what generated code may use, and what kernels ask for
    *("sse3", "ssse3", "sse4.1", "sse4.2", "sse4a", "popcnt", "lzcnt", "bmi", "bmi2", "movbe", "cx16", "sahf"),
    *("prfchw", "aes", "pclmul", "vaes", "vpclmulqdq", "gfni", "sha", "adx", "xop", "fma4", "tbm"),
    *("avx", "avx2", "fma", "f16c", "avxvnni", "avxifma", "avxneconvert", "avxvnniint8", "avxvnniint16"),
    *("avx512f", "avx512cd", "avx512dq", "avx512bw", "avx512vl", "avx512ifma", "avx512vbmi", "avx512vbmi2"),
    *("avx512vnni", "avx512bitalg", "avx512vpopcntdq", "avx512bf16", "avx512fp16", "avx512vp2intersect"),
    *("avx10.1", "avx10.2", "amx-tile", "amx-int8", "amx-bf16", "amx-fp16", "amx-complex", "amx-fp8", "amx-tf32"),
    *("amx-avx512", "amx-movrs"),
)
ARM = (
    *("neon", "dotprod", "fullfp16", "fp16fml", "bf16", "i8mm", "rdm", "lse", "rcpc", "complxnum", "fptoint", "flagm"),
    *("aes", "sha2", "sha3", "sve", "sve2", "cssc", "mops", "faminmax"),
)
LLVM = {re.sub(r"[_.\-]", "", name): name for name in (*X86, *ARM)}  # by normal name
FAMILIES = ("amx", "avx10", "avx512", "sve")  # of which the user may hide all at once
NEWER = re.compile(r"avx.+|amx.+|sve.+")  # instruction sets that are not named here yet
LINUX = {  # normal names by Linux's, where these are others
    "pni": "sse3",
    "pclmulqdq": "pclmul",
    "abm": "lzcnt",
    "bmi1": "bmi",
    "lahflm": "sahf",
    "3dnowprefetch": "prfchw",
    "shani": "sha",
    "asimd": "neon",
    "asimddp": "dotprod",
    "asimdhp": "fullfp16",
    "asimdrdm": "rdm",
    "asimdfhm": "fp16fml",
    "atomics": "lse",
    "fcma": "complxnum",
    "frint": "fptoint",
    "lrcpc": "rcpc",
}
NEEDS = {
    "ssse3": ("sse3",),
    "sse41": ("ssse3",),
    "sse42": ("sse41",),
    "sse4a": ("sse3",),
    "avx": ("sse42",),
    "avx2": ("avx",),
    "fma": ("avx",),
    "f16c": ("avx",),
    "fma4": ("avx", "sse4a"),
    "xop": ("fma4",),
    "vaes": ("avx2", "aes"),
    "vpclmulqdq": ("avx", "pclmul"),
    "avx512f": ("avx2", "fma", "f16c"),
    "avx512fp16": ("avx512bw", "avx512dq", "avx512vl"),
    **dict.fromkeys(("avx512bf16", "avx512bitalg", "avx512vbmi", "avx512vbmi2"), ("avx512bw",)),
    "avx101": tuple(name for name in LLVM if name.startswith("avx512") and name != "avx512vp2intersect"),
    "avx102": ("avx101",),
    "amxtile": (),
    "amxavx512": ("amxtile", "avx102"),
    "fp16fml": ("fullfp16",),
    "sha3": ("sha2",),
    "sveaes": ("sve2", "aes"),
    "svesha3": ("sve2", "sha3"),
    "sve": ("fullfp16",),
    "sve2": ("sve",),
}
FAMILY_NEEDS = {"avx512": "avx512f", "amx": "amxtile", "avx10": "avx101", "avx": "avx2", "sve": "sve2"}


def normalise(feature: str) -> str:
    """Return the normal name of a feature, whoever spelt it."""
    plain = re.sub(r"[_.\-]", "", feature)
    return LINUX.get(plain, plain)


def instruction_sets(features: Iterable[str]) -> list[str]:
    """Return the normal names of those ``features`` that generated code may use."""
    names = {normalise(feature) for feature in features}
    return sorted(name for name in names if name in LLVM or NEWER.fullmatch(name))


def needs(name: str) -> tuple[str, ...]:
    """Return the instruction sets that one of a normal name can't be without."""
    if name in NEEDS:
        return NEEDS[name]
    return next(((base,) for family, base in FAMILY_NEEDS.items() if name.startswith(family) and name != base), ())


def consistent(names: Iterable[str]) -> set[str]:
    """Leave out the instruction sets that lack something that they need, as LLVM does."""
    left = set(names)
    while lost := {name for name in left if not left.issuperset(needs(name))}:
        left -= lost
    return left


def hidden() -> set[str]:
    """Return the normal names of what the user hides by TVMERGE_HIDE_FEATURES, the members of families included.

    Raises:
        UserError: an unknown name.
    """
    found: set[str] = set()
    for name in filter(None, (part.strip() for part in os.environ.get(HIDE, "").split(","))):
        normal = normalise(name.lower())
        members = {feature for feature in LLVM if feature.startswith(normal)} if normal in FAMILIES else set()
        if not members and normal not in LLVM:
            known = [*FAMILIES, *LLVM]
            raise UserError(
                f"{HIDE}: {name!r} is unknown{nearest(name, known)}; name families ({', '.join(FAMILIES)}) or "
                "instruction sets, as in avx512,amx"
            )
        found |= members | {normal}
    return found


def without_hidden(names: Iterable[str]) -> set[str]:
    """Take away what the user hides, and what needs that.

    Raises:
        UserError: see ``hidden``.
    """
    gone = hidden()
    families = tuple(family for family in FAMILIES if family in gone)
    return consistent(name for name in names if name not in gone and not name.startswith(families))
