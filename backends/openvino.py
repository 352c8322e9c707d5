"""OpenVINO: the traced module as IR on disk, compiled for the CPU with its own hints for latency."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from backends.command import Command
from backends.converted import Converted
from backends.openvino_model import IR, OpenVinoModel, import_openvino
from backends.peer import COMMAND, FUNCTIONS

if TYPE_CHECKING:
    from models.components import Component


class OpenVino(Converted):
    """A component as OpenVINO runs it. The IR is float32; the hint says what it is computed in."""

    name = "openvino"
    stage = "convert"
    command: Command | None = None

    def write(self, part: Component, folder: Path) -> None:
        """Trace a component at fixed shapes and write its float32 IR."""
        import torch

        (function,) = (function for function in part.functions if function.name == FUNCTIONS[part.name])
        inputs = tuple(value for _, value in function.inputs)
        openvino = import_openvino()
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer's, on branches that fixed shapes decide
            shapes = [tuple(value.shape) for value in inputs]
            model = openvino.convert_model(part.module, example_input=inputs, input=shapes)
        openvino.save_model(model, folder / IR, compress_to_fp16=False)

    def open(self, folder: Path) -> OpenVinoModel:
        """Compile a component's IR."""
        return OpenVinoModel(folder, self.settings.dtype, self.settings.num_threads)

    def prepare(self, component: str) -> dict[str, float]:
        """Compile a component's IR, or all, or get the command ready."""
        if component != COMMAND:
            return super().prepare(component)
        arguments = ["-m", "backends.openvino_picture", "--model-dir", self.folder, "--dtype", self.settings.dtype]
        self.command = Command(arguments, self.settings, self.settings.output_folder(component, self.name))
        return {self.stage: self.convert_seconds(list(FUNCTIONS))}

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Infer, or run the whole command."""
        return super().run(inputs) if self.command is None else self.command.run()

    def peak_memory(self) -> int | None:
        """Return the largest resident size so far, of the command where it is one."""
        return super().peak_memory() if self.command is None else self.command.peak_memory()
