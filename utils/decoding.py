"""Parsed JSON as dataclasses, types checked all the way down."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from utils.errors import UserError


def decode(kind: Any, value: Any, where: str, advice: str) -> Any:
    """Turn parsed JSON into ``kind``: a dataclass, list, dict, number, text, or one of them or None.

    Raises:
        UserError: a type is wrong or a key is missing or surplus; ``where`` it is, and ``advice``.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(typing.cast(type, kind), value, where, advice)
    if origin is list and isinstance(value, list):
        return [decode(arguments[0], v, f"{where}[{i}]", advice) for i, v in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {k: decode(arguments[1], v, f"{where}.{k}", advice) for k, v in value.items()}
    if kind is Any or (type(None) in arguments and value is None):
        return value
    if type(None) in arguments:
        return decode(arguments[0], value, where, advice)
    if kind is float and type(value) is int:
        return float(value)
    if origin is None and type(value) is kind:
        return value
    raise UserError(f"{where} has the wrong type; {advice}")


def _decode_dataclass(kind: type, value: Any, where: str, advice: str) -> Any:
    names = {field.name for field in dataclasses.fields(kind)}
    if not isinstance(value, dict) or set(value) != names:
        raise UserError(f"{where} must have the keys {sorted(names)}; {advice}")
    hints = typing.get_type_hints(kind)
    return kind(**{name: decode(hints[name], value[name], f"{where}.{name}", advice) for name in names})
