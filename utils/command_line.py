"""A frozen dataclass as a command line: each field is a flag, its metadata the help."""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from utils.errors import UserError, choose, nearest

Config = TypeVar("Config")


def flag(default: Any, help: str, metavar: str | tuple[str, ...] | None = None) -> Any:
    """Declare a dataclass field that is also a flag. A default of None reads as "decided later".

    A flag whose type is a tuple takes as many words, each with its own ``metavar``.
    """
    return dataclasses.field(default=default, metadata={"help": help, "metavar": metavar})


def flag_name(field: str) -> str:
    """Return the flag of a field: ``num_images`` is ``--num-images``."""
    return "--" + field.replace("_", "-")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def _field_type(annotation: Any) -> type:
    """Return T for ``T`` and for ``T | None``."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
    return annotation


def _add_flag(parser: argparse.ArgumentParser, field: dataclasses.Field, annotation: Any) -> None:
    kind, text = _field_type(annotation), field.metadata["help"].replace("%", "%%")
    if kind is bool:
        parser.add_argument(flag_name(field.name), action="store_true", default=False, help=text)
        return
    if field.default is not None and field.default != "":
        text += f" (default: {field.default})"
    parts = typing.get_args(kind)
    words: dict[str, Any] = {"type": parts[0], "nargs": len(parts)} if parts else {"type": kind}
    parser.add_argument(
        flag_name(field.name), default=field.default, help=text, metavar=field.metadata["metavar"], **words
    )


def parse(config: type[Config], argv: Sequence[str], description: str, examples: str) -> Config:
    """Parse ``argv`` into ``config``, whose ``__post_init__`` validates.

    Raises:
        UserError: an unknown flag (the nearest is named), a value of the wrong type, or whatever the config refuses.
    """
    parser = _Parser(
        description=description,
        epilog="examples:\n" + examples.strip("\n"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    annotations = typing.get_type_hints(config)
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        _add_flag(parser, field, annotations[field.name])
    values, unknown = parser.parse_known_args(argv)
    if unknown:
        known = [flag_name(f.name) for f in dataclasses.fields(config)]  # type: ignore[arg-type]
        name = unknown[0].split("=")[0]
        raise UserError(f"unknown argument {name!r}{nearest(name, known)}; see --help")
    return config(**{name: tuple(value) if type(value) is list else value for name, value in vars(values).items()})


def parse_command(
    config: type[Config], argv: Sequence[str], commands: Sequence[str], description: str, examples: str
) -> tuple[str, Config]:
    """Parse a command and its flags.

    Raises:
        UserError: no command, an unknown one, or see ``parse``.
    """
    description = f"{description}\n\ncommands: {', '.join(commands)}"
    if not argv or argv[0].startswith("-"):
        parse(config, argv, description, examples)  # --help ends here
        raise UserError(f"name a command: {' or '.join(commands)}")
    return choose("command", argv[0], commands), parse(config, argv[1:], description, examples)


def existing_parent(path: Path) -> Path:
    """Return the deepest folder on the way to ``path`` that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
