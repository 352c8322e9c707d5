"""Peers held to the instruction sets that TVMERGE_HIDE_FEATURES leaves, as our own code is, by their own switches.

OpenVINO and PyTorch compute with oneDNN, which reads ONEDNN_MAX_CPU_ISA; PyTorch's own kernels read
ATEN_CPU_CAPABILITY. ONNX Runtime has no such switch.
Source: oneDNN's developer guide, "CPU Dispatcher Control".
"""

from __future__ import annotations

from utils.cpu import host_instruction_sets
from utils.features import hidden

ONEDNN = (  # the most that it may use, by an instruction set that this needs
    ("amxtile", "AVX512_CORE_AMX"),
    ("avx512fp16", "AVX512_CORE_FP16"),
    ("avx512bf16", "AVX512_CORE_BF16"),
    ("avx512vnni", "AVX512_CORE_VNNI"),
    ("avx512bw", "AVX512_CORE"),
    ("avxvnni", "AVX2_VNNI"),
    ("avx2", "AVX2"),
    ("avx", "AVX"),
)
ATEN = (("avx512bw", "avx512"), ("avx2", "avx2"))


def held() -> dict[str, str]:
    """Return the environment of a peer's process; nothing where nothing is hidden.

    Raises:
        UserError: the user hides an unknown instruction set.
    """
    host = host_instruction_sets()
    if not hidden() or host is None:
        return {}

    def most(choices: tuple[tuple[str, str], ...], least: str) -> str:
        return next((value for needed, value in choices if needed in host), least)

    return {"ONEDNN_MAX_CPU_ISA": most(ONEDNN, "SSE41"), "ATEN_CPU_CAPABILITY": most(ATEN, "default")}
