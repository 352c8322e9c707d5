"""A checkpoint's scheduler_config.json, read the way diffusers' ``from_config`` reads it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

from utils.errors import UserError, choose

CONFIG_FILE = "scheduler_config.json"
_S = TypeVar("_S", bound="Settings")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all samplers know. A subclass has the names and defaults of its diffusers class's constructor.

    ``from_config`` takes the keys that the class knows and leaves the rest, so the config of one scheduler class serves
    another. Each value is checked; a value of ``REFUSED`` keys other than the default is refused rather than ignored.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 0

    # Dataclasses leave class variables out, so these are no settings. A subclass adds to both.
    CHOICES: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
        "prediction_type": ("epsilon", "v_prediction", "sample"),
        "timestep_spacing": ("leading", "trailing", "linspace"),
    }
    REFUSED: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def from_config(cls: type[_S], config: Mapping[str, Any]) -> _S:
        """Make the settings from a config dict; a config of another scheduler class is welcome.

        Raises:
            UserError: a value is of the wrong type, out of range, or asks for what is not supported. It names the key.
        """
        unset = config.get("_use_default_values", ())  # diffusers: defaults of the class that wrote it, not choices
        values = {}
        for field in fields(cls):
            if field.name in config and field.name not in unset:
                values[field.name] = _typed(field.name, config[field.name], str(field.type))
        return cls(**values)

    def __post_init__(self) -> None:
        for key, choices in self.CHOICES.items():
            choose(f"{CONFIG_FILE}: {key}", getattr(self, key), choices)
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in self.REFUSED and value != field.default:
                raise UserError(f"{CONFIG_FILE}: {field.name} {value!r} is not supported; choose another sampler")
        for key, lowest in (("num_train_timesteps", 1), ("steps_offset", 0)):
            if getattr(self, key) < lowest:
                raise UserError(f"{CONFIG_FILE}: {key} must be {lowest} or more, not {getattr(self, key)}")
        if self.trained_betas is not None and len(self.trained_betas) != self.num_train_timesteps:
            raise UserError(
                f"{CONFIG_FILE}: trained_betas has {len(self.trained_betas)} values, "
                f"num_train_timesteps is {self.num_train_timesteps}"
            )


def as_in_pipeline(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config as diffusers' StableDiffusionPipeline amends it when it is made.

    It sets steps_offset to 1 and clip_sample to False whatever the checkpoint says, so a picture equals the pipeline's
    only with both.
    """
    amended = {"steps_offset": 1, "clip_sample": False}
    unset = [key for key in config.get("_use_default_values", ()) if key not in amended]
    return {**config, **amended, "_use_default_values": unset}


def _typed(key: str, value: Any, annotation: str) -> Any:
    """Return ``value`` as the type that ``annotation`` names, or refuse it."""
    wanted = annotation.removesuffix(" | None")
    if value is None and wanted != annotation:
        return None
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
    if wanted.startswith("tuple") and isinstance(value, (list, tuple)):
        return tuple(_typed(key, item, "float") for item in value)
    if wanted == "float" and number:
        return float(value)
    if wanted == "int" and number and value % 1 == 0:
        return int(value)
    if (wanted == "bool" and isinstance(value, bool)) or (wanted == "str" and isinstance(value, str)):
        return value
    raise UserError(f"{CONFIG_FILE}: {key} must be of type {annotation}, not {value!r}")
