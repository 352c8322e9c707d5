"""Weights from a safetensors file into a module, every name and shape checked against the module first."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from models.layout import read_header
from utils.errors import UserError

CLIP_PREFIX = "text_model."  # written by transformers below 5
IGNORED = "position_ids"  # a buffer that old CLIP checkpoints store; it counts 0, 1, 2, ...
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
SHOWN = 3


def load_weights(module: torch.nn.Module, path: Path) -> None:
    """Fill ``module``, made on the meta device, with the tensors of ``path`` as float32.

    Raises:
        UserError: the file is damaged, or a tensor is missing, unknown or of another shape.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    stored = _stored_names(module, path, expected)
    with safe_open(path, framework="pt") as file:
        state = {name: file.get_tensor(source).to(torch.float32) for name, source in stored.items()}
    module.load_state_dict(state, strict=True, assign=True)
    restore_buffers(module)


def restore_buffers(module: torch.nn.Module) -> None:
    """Give the buffers that no checkpoint stores, left on the meta device, their values: positions 0, 1, 2, ..."""
    for name, buffer in list(module.named_buffers()):
        if not name.endswith(IGNORED):
            raise AssertionError(f"the buffer {name} has no known value")
        owner = module.get_submodule(name.rpartition(".")[0])
        setattr(owner, IGNORED, torch.nn.Buffer(torch.arange(buffer.shape[-1]).expand(buffer.shape), persistent=False))


def _stored_names(module: torch.nn.Module, path: Path, expected: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """Return, for each tensor that the module wants, its name in the file."""
    shapes = {name: shape for name, shape in read_header(path).items() if not name.endswith(IGNORED)}
    new_names = {name: _renamed(module, name, expected) for name in shapes}
    stored = {new: old for old, new in new_names.items()}
    _refuse("lacks the tensor", path, [name for name in expected if name not in stored])
    _refuse(
        "has a tensor that its config does not know:", path, [n for n, new in new_names.items() if new not in expected]
    )
    for name, shape in expected.items():
        found = shapes[stored[name]]
        if found != shape:
            raise UserError(
                f"{path}: {name} has the shape {list(found)} instead of {list(shape)}; is its config.json another's?"
            )
    return stored


def _refuse(what: str, path: Path, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        raise UserError(f"{path} {what} {', '.join(names[:SHOWN])}{more}; is its config.json another's?")


def _renamed(module: torch.nn.Module, name: str, expected: dict[str, tuple[int, ...]]) -> str:
    """Return the module's name of a tensor that an older library stored."""
    if name in expected:
        return name
    if name.removeprefix(CLIP_PREFIX) in expected:
        return name.removeprefix(CLIP_PREFIX)
    owner, _, leaf = name.rpartition(".")
    block, _, old = owner.rpartition(".")
    new = f"{block}.{OLD_ATTENTION.get(old, old)}.{leaf}"
    return new if new in expected else name
