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
    shapes = {name: shape for name, shape in read_header(path).items() if not name.endswith(IGNORED)}
    expected = set(module.state_dict())
    stored = {_renamed(name, expected): name for name in shapes}
    check_tensors(module, path, {name: shapes[old] for name, old in stored.items()})
    unknown = [old for name, old in stored.items() if name not in expected]
    _refuse("has a tensor that its config does not know:", path, unknown)
    with safe_open(path, framework="pt") as file:
        assign(module, {name: file.get_tensor(old) for name, old in stored.items()})


def check_tensors(module: torch.nn.Module, path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Check that ``shapes``, by the module's own names, has every tensor of ``module`` as it should be.

    Raises:
        UserError: naming the file, the tensor, and its shape as it is and should be.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    _refuse("lacks the tensor", path, [name for name in expected if name not in shapes])
    for name, shape in expected.items():
        found = shapes[name]
        if found != shape:
            raise UserError(
                f"{path}: {name} has the shape {list(found)} instead of {list(shape)}; is its config.json another's?"
            )


def assign(module: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Make ``tensors`` the parameters of ``module``, made on the meta device, as float32. Others are left out.

    What is float32 already is not copied: it may stay a map of its file.
    """
    module.load_state_dict({name: tensors[name].to(torch.float32) for name in module.state_dict()}, assign=True)
    restore_buffers(module)


def restore_buffers(module: torch.nn.Module) -> None:
    """Give the buffers that no checkpoint stores, left on the meta device, their values: positions 0, 1, 2, ..."""
    for name, buffer in list(module.named_buffers()):
        if not name.endswith(IGNORED):
            raise AssertionError(f"the buffer {name} has no known value")
        owner = module.get_submodule(name.rpartition(".")[0])
        setattr(owner, IGNORED, torch.nn.Buffer(torch.arange(buffer.shape[-1]).expand(buffer.shape), persistent=False))


def _refuse(what: str, path: Path, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        raise UserError(f"{path} {what} {', '.join(names[:SHOWN])}{more}; is its config.json another's?")


def _renamed(name: str, expected: set[str]) -> str:
    """Return the module's name, one of ``expected``, of a tensor that an older library may have stored."""
    if name in expected:
        return name
    if name.removeprefix(CLIP_PREFIX) in expected:
        return name.removeprefix(CLIP_PREFIX)
    owner, _, leaf = name.rpartition(".")
    block, _, old = owner.rpartition(".")
    new = f"{block}.{OLD_ATTENTION.get(old, old)}.{leaf}"
    return new if new in expected else name
