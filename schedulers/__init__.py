"""Diffusion samplers in NumPy, made from a checkpoint's scheduler config. Each equals its diffusers class.

A sampler goes by its label (``euler-ancestral``), its diffusers class (``EulerAncestralDiscreteScheduler``) or its name
in A1111 (``Euler a``), in any case; an A1111 name may end in ``Karras``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from schedulers.base import Scheduler
from schedulers.ddim import DDIMScheduler
from schedulers.dpmpp_2m import DPMSolverScheduler
from schedulers.euler import EulerScheduler
from schedulers.euler_ancestral import EulerAncestralScheduler
from schedulers.noise import Noise, NoiseGenerator, per_picture
from schedulers.pndm import PNDMScheduler
from schedulers.settings import CONFIG_FILE, as_in_pipeline
from utils.errors import UserError, choose, nearest

__all__ = [
    "LABELS",
    "SAMPLER_NAMES",
    "Noise",
    "NoiseGenerator",
    "Scheduler",
    "as_in_pipeline",
    "create",
    "default_label",
    "per_picture",
    "resolve_label",
]

_CLASSES = (DDIMScheduler, PNDMScheduler, EulerScheduler, EulerAncestralScheduler, DPMSolverScheduler)
_BY_LABEL = {cls.label: cls for cls in _CLASSES}
LABELS = tuple(_BY_LABEL)
SAMPLER_NAMES = {cls.label: cls.a1111_name for cls in _CLASSES}
_KARRAS = " karras"
_WITH_KARRAS = (EulerScheduler, DPMSolverScheduler)
_LABEL_OF = {
    **{name.lower(): cls.label for cls in _CLASSES for name in (cls.label, cls.class_name, cls.a1111_name)},
    **{cls.a1111_name.lower() + _KARRAS: cls.label for cls in _WITH_KARRAS},
}


def resolve_label(name: str) -> str:
    """Return the label of the sampler that goes by ``name``.

    A name that ends in Karras resolves to the label alone: give ``create`` the name itself.

    Raises:
        UserError: nothing goes by this name; the choices are listed.
    """
    key = " ".join(name.lower().split())
    return _LABEL_OF[key] if key in _LABEL_OF else choose("--scheduler-label", name, LABELS)


def default_label(config: Mapping[str, Any]) -> str:
    """Return the label of the sampler that the checkpoint's config is of.

    Raises:
        UserError: it is of a class that is not among ours.
    """
    name = str(config.get("_class_name"))
    classes = {cls.class_name: cls.label for cls in _CLASSES}
    if name in classes:
        return classes[name]
    raise UserError(
        f"{CONFIG_FILE}: _class_name {name} has no counterpart here{nearest(name, classes)}; "
        f"choose --scheduler-label from: {', '.join(LABELS)}"
    )


def create(name: str, config: Mapping[str, Any]) -> Scheduler:
    """Make a sampler by label, diffusers class or A1111 name.

    Args:
        name: which one. ``DPM++ 2M Karras`` is ``dpmpp-2m`` with the config's use_karras_sigmas set.
        config: the checkpoint's scheduler_config.json, of whatever scheduler class. It is read as that sampler's
            ``from_config`` in diffusers reads it: keys that the class knows are taken, the rest are its defaults.

    Raises:
        UserError: the name is unknown, or the config asks for what is not supported; it names the key.
    """
    scheduler_class = _BY_LABEL[resolve_label(name)]
    if name.strip().lower().endswith(_KARRAS):
        unset = [key for key in config.get("_use_default_values", ()) if key != "use_karras_sigmas"]
        config = {**config, "use_karras_sigmas": True, "use_exponential_sigmas": False, "_use_default_values": unset}
    return scheduler_class(config)
