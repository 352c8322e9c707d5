"""The optimisations by name. Each can be left out of a build with --disable."""

from __future__ import annotations

from utils.config import BuildConfig
from utils.errors import UserError, choose

OPTIMISATIONS = {
    "layout": "channels-last convolutions and cancelled transposes",
    "fusion": "element-wise operations joined to their producer",
    "packed_weights": "multiplies and convolutions on weights packed in panels; bias and residual added in registers",
    "joined_multiplies": "queries, keys and values as one multiply",
    "split_float32": "multiplies and convolutions as three products of bfloat16 parts where the CPU has AMX",
    "winograd": "3x3 convolutions with fewer multiplies, on transformed weights",
    "flash_attention": "attention without a stored score matrix",
    "fused_softmax": "softmax in one pass over memory, where scores are stored",
    "fused_groupnorm": "GroupNorm and SiLU in two passes over memory",
    "fused_concat": "skip connections read where they lie, by GroupNorm and 1x1 convolution",
    "fused_layernorm": "LayerNorm in one pass over memory",
    "cached_context": "keys and values of cross-attention computed once a picture, not once a step",
    "tuned": "tilings of kernels that records found faster",
    "fused_gelu": "activations of a multiply computed in registers: GELU, GEGLU, SiLU",
}
ALL = "all"
BFLOAT16_NEEDS = ("layout", "packed_weights", "split_float32")


def enabled(disable: str, dtype: str = "float32") -> dict[str, bool]:
    """Return which optimisations are on, given the values of --disable and --dtype.

    Raises:
        UserError: a name is unknown (the choices and the nearest are named), or bfloat16 needs what is off.
    """
    names = {choose("--disable", name.strip(), [*OPTIMISATIONS, ALL]) for name in disable.split(",") if name.strip()}
    on = {name: name not in names and ALL not in names for name in OPTIMISATIONS}
    if dtype == "bfloat16" and not all(on[name] for name in BFLOAT16_NEEDS):
        raise UserError(f"--disable {disable}: --dtype bfloat16 needs {' and '.join(BFLOAT16_NEEDS)}")
    return on


def chosen(config: BuildConfig) -> dict[str, bool]:
    """Return which optimisations are on in a build; a GPU's 16 bits need none of them.

    Raises:
        UserError: see ``enabled``.
    """
    return enabled(config.disable, config.precision if config.gpu is None else "float32")
