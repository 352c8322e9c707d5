"""OpenVINO: the traced module as IR on disk, compiled for the CPU with its own hints for latency."""

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from backends.command import Command
from backends.openvino_model import CONVERT_SECONDS, IR, PIPELINE, OpenVinoModel, import_openvino
from backends.peer import COMMAND, FUNCTIONS, Peer
from runtime.artifact import TOKENIZER

if TYPE_CHECKING:
    from models.assembly import Checkpoint
    from models.components import Component


class OpenVino(Peer):
    """A component as OpenVINO runs it. The IR is float32; the hint says what it is computed in."""

    name = "openvino"

    def unavailable(self) -> str | None:
        """Return why this peer can't run here, None when it can."""
        if find_spec("openvino") is None:
            return "openvino is not installed; pip install -r requirements-bench.txt"
        return super().unavailable()

    def convert(self, components: Sequence[str]) -> None:
        """Write the IR of each component, and for the command what else makes a picture."""
        whole = COMMAND in components
        missing = [name for name in FUNCTIONS if (whole or name in components) and not (self._folder / name).is_dir()]
        if not missing and (not whole or (self._folder / PIPELINE).is_file()):
            return
        from backends.reference import load_parts

        checkpoint, parts = load_parts(self.settings)
        self._folder.mkdir(parents=True, exist_ok=True)
        for name in missing:
            _convert(parts[name], self._folder / name)
        if whole:
            self._describe(checkpoint, parts["vae_decoder"].functions[0].inputs[0][1].shape)

    def prepare(self, component: str) -> dict[str, float]:
        """Compile a component's IR."""
        self.command = None
        if component == COMMAND:
            arguments = ["-m", "backends.openvino_picture", "--model-dir", self._folder, "--dtype", self.settings.dtype]
            self.command = Command(arguments, self.settings, self.settings.output_folder(component, self.name))
            return {"convert": sum(self._convert_seconds(name) for name in FUNCTIONS)}
        start = time.perf_counter()
        self.model = OpenVinoModel(self._folder / component, self.settings.dtype, self.settings.num_threads)
        return {"convert": self._convert_seconds(component), "load": time.perf_counter() - start}

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Infer, or run the whole command."""
        return self.model(*inputs.values()) if self.command is None else self.command.run()

    def peak_memory(self) -> int | None:
        """Return the largest resident size so far, of the command where it is one."""
        return super().peak_memory() if self.command is None else self.command.peak_memory()

    @property
    def _folder(self) -> Path:
        return self.settings.folder / f"openvino-{version('openvino')}"

    def _convert_seconds(self, component: str) -> float:
        return json.loads((self._folder / component / CONVERT_SECONDS).read_text())

    def _describe(self, checkpoint: Checkpoint, latent_shape: Sequence[int]) -> None:
        """Write what a picture needs beside the models."""
        (self._folder / TOKENIZER).write_text(checkpoint.tokenizer_json, encoding="utf-8")
        values = {
            "model_name": checkpoint.name,
            "model_digest": checkpoint.digest,
            "scheduler": checkpoint.scheduler_config,
            "latent_shape": list(latent_shape),
        }
        (self._folder / PIPELINE).write_text(json.dumps(values), encoding="utf-8")


def _convert(part: Component, folder: Path) -> None:
    """Trace a component at fixed shapes and write its float32 IR. The folder appears whole or not at all."""
    import torch

    (function,) = (function for function in part.functions if function.name == FUNCTIONS[part.name])
    inputs = tuple(value for _, value in function.inputs)
    temporary = folder.with_name(f"partial-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    openvino = import_openvino()
    start = time.perf_counter()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, on branches that fixed shapes decide
        shapes = [tuple(value.shape) for value in inputs]
        model = openvino.convert_model(part.module, example_input=inputs, input=shapes)
    openvino.save_model(model, temporary / IR, compress_to_fp16=False)
    (temporary / CONVERT_SECONDS).write_text(json.dumps(time.perf_counter() - start))
    temporary.rename(folder)
