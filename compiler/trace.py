"""From a PyTorch component to a Relax IRModule: one Relax function per compiled shape, parameters as inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tvm
from torch.export.graph_signature import InputKind
from tvm import relax
from tvm.relax.frontend.torch import from_exported_program

from compiler.passes.lift_context import FIXED
from models.components import Component
from utils.errors import UserError


@dataclass(frozen=True)
class Traced:
    """A component in Relax: its functions, and raw parameters by qualified name.

    In ``module`` each function takes its inputs (attribute ``num_input``; those that stay the same over a picture are
    named in ``fixed``), then its raw parameters, named as in ``parameters``.
    """

    name: str
    module: tvm.IRModule
    parameters: dict[str, np.ndarray]


def _to_device(node: torch.fx.Node, importer: Any) -> relax.Var:
    """Import ``to.device``: everything is on one device here, so it is the value itself."""
    return importer.env[node.args[0]]


def _embedding(node: torch.fx.Node, importer: Any) -> relax.Var:
    """Import ``embedding`` with ids clipped to the table: the importer's own form reads beyond it."""
    weight, ids = (importer.env[argument] for argument in node.args[:2])
    shape = [int(extent) for extent in ids.ty.shape]
    emit, op = importer.block_builder.emit, relax.op
    flat = emit(op.reshape(emit(op.astype(ids, "int32")), [-1]))
    return emit(op.reshape(emit(op.take(weight, flat, axis=0, mode="clip")), [*shape, int(weight.ty.shape[1])]))


def _upsample_nearest(node: torch.fx.Node, importer: Any) -> relax.Var:
    """Import nearest upsampling to the size of the result: the importer's own form rounds where PyTorch cuts."""
    size = [int(extent) for extent in node.meta["val"].shape[2:]]
    return importer.block_builder.emit(
        relax.op.image.resize2d(
            importer.env[node.args[0]],
            size,
            layout="NCHW",
            method="nearest_neighbor",
            coordinate_transformation_mode="asymmetric",
            rounding_method="floor",
        )
    )


def _call_tokens(node: torch.fx.Node, importer: Any) -> relax.Var:
    """Import an operator of ``models.token_merging`` as a call that dispatch gives to a kernel."""
    tensors = [importer.env[argument] for argument in node.args if isinstance(argument, torch.fx.Node)]
    numbers = [argument for argument in node.args if not isinstance(argument, torch.fx.Node)]
    value = node.meta["val"]
    result = relax.TensorType([int(extent) for extent in value.shape], str(value.dtype).removeprefix("torch."))
    arguments = relax.Tuple([*tensors, relax.ShapeExpr(numbers)] if numbers else tensors)
    name = str(node.target).removesuffix(".default")
    return importer.block_builder.emit(relax.call_dps_packed(name, arguments, result))


CONVERT_MAP: dict[str, Callable] = {
    "to.device": _to_device,
    "embedding.default": _embedding,
    "upsample_nearest2d.vec": _upsample_nearest,
    "match_tokens.default": _call_tokens,
    "merge_tokens.default": _call_tokens,
    "unmerge_tokens.default": _call_tokens,
}


def _import(program: torch.export.ExportedProgram) -> tuple[tvm.IRModule, list[str]]:
    """Import without decomposition: attention and norms stay single ops. Returns the module and parameter names."""
    module = from_exported_program(
        program,
        keep_params_as_input=True,
        unwrap_unit_return_tuple=True,
        run_ep_decomposition=False,
        custom_convert_map=CONVERT_MAP,
    )
    module, _ = relax.frontend.detach_params(module)
    specs = program.graph_signature.input_specs
    return module, [spec.target for spec in specs if spec.kind is InputKind.PARAMETER]


def _rename(function: relax.Function, inputs: list[str], parameters: list[str]) -> relax.Function:
    """Give inputs and parameters their qualified names, so that equal weights of two functions are known as equal."""
    new = [relax.Var(name, var.ty) for name, var in zip(inputs + parameters, function.params, strict=True)]
    renamed = function.bind_params(dict(zip(function.params, new, strict=True)))
    body, attrs = renamed.body, function.attrs
    return relax.Function(new, body, function.ret_ty, function.is_pure, attrs)


def trace(component: Component) -> Traced:
    """Trace every function of ``component``.

    Raises:
        UserError: naming the operation that this TVM can't import.
    """
    functions = {}
    for function in component.functions:
        names = [name for name, _ in function.inputs]
        with torch.no_grad():
            program = torch.export.export(component.module, tuple(value for _, value in function.inputs))
        try:
            module, parameters = _import(program)
        except (NotImplementedError, AssertionError, ValueError) as error:
            raise UserError(f"{component.name}: TVM can't import this model: {error}") from error
        renamed = _rename(module["main"], names, parameters)
        functions[tvm.ir.GlobalVar(function.name)] = renamed.with_attr(FIXED, list(function.fixed))
    raw = {name: value.detach().contiguous().numpy() for name, value in component.module.named_parameters()}
    return Traced(component.name, tvm.IRModule(functions), raw)
