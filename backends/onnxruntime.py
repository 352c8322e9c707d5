"""ONNX Runtime: the exported module as ONNX on disk, with all graph optimisations of its CPU provider."""

from __future__ import annotations

import contextlib
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from backends.converted import Converted
from backends.peer import COMMAND, FUNCTIONS
from utils.errors import UserError
from utils.features import HIDE, hidden

if TYPE_CHECKING:
    from models.components import Component

GRAPH = "model.onnx"


class OnnxModel:
    """The graph in ``folder`` as a function of arrays, on ``num_threads`` threads."""

    def __init__(self, folder: Path, num_threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = num_threads, 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self._session = onnxruntime.InferenceSession(str(folder / GRAPH), options, providers=["CPUExecutionProvider"])
        self._names = [value.name for value in self._session.get_inputs()]

    def __call__(self, *inputs: np.ndarray) -> np.ndarray:
        """Run the graph."""
        return self._session.run(None, dict(zip(self._names, inputs, strict=True)))[0]


class OnnxRuntime(Converted):
    """A component as ONNX Runtime runs it, in float32."""

    name = "onnxruntime"
    stage = "export"

    def unavailable(self) -> str | None:
        """Return why this peer can't run here, None when it can."""
        if self.settings.dtype != "float32":
            return f"onnxruntime's CPU kernels have no {self.settings.dtype}"
        if hidden():
            return f"onnxruntime can't be held to the instruction sets that {HIDE} leaves"
        return super().unavailable()

    def write(self, part: Component, folder: Path) -> None:
        """Export a component at fixed shapes."""
        import torch

        (function,) = (function for function in part.functions if function.name == FUNCTIONS[part.name])
        with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                part.module,
                tuple(value for _, value in function.inputs),
                str(folder / GRAPH),
                input_names=[name for name, _ in function.inputs],
                dynamo=True,
                external_data=True,
            )

    def open(self, folder: Path) -> OnnxModel:
        """Load a component's graph."""
        return OnnxModel(folder, self.settings.num_threads)

    def prepare(self, component: str) -> dict[str, float]:
        """Load a component's graph, or all."""
        if component == COMMAND:
            raise UserError("only tvm and openvino have a command line of their own here")
        return super().prepare(component)
