"""PyTorch as diffusers runs it: scaled-dot-product attention, channels-last."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import torch

from backends.peer import COMMAND, PICTURE, PROMPT, Drawn, Peer
from backends.reference import baseline_config, load_parts
from utils.errors import UserError


class Eager(Peer):
    """A component's module, called as it is."""

    name = "eager"
    compiles = False

    def prepare(self, component: str) -> dict[str, float]:
        """Load the checkpoint and keep one module of it."""
        if component == COMMAND:
            raise UserError("only tvm and openvino draw from a prepared model")
        start = time.perf_counter()
        torch.set_num_threads(self.settings.num_threads)
        if component == PICTURE:
            from backends.diffusers import DiffusersBackend

            self.backend = DiffusersBackend.load(baseline_config(self.settings, self.compiles))
            return {"load": time.perf_counter() - start}
        self.dtype = getattr(torch, self.settings.dtype)
        _, parts = load_parts(self.settings)
        module = parts[component].module.to(self.settings.device, self.dtype)
        self.module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return {"load": time.perf_counter() - start}

    def draw(self, seed: int, steps: int) -> Drawn:
        """Draw by diffusers' own pipeline."""
        self.backend.encode.cache_clear()
        made = self.backend.generate(PROMPT, "", seed, steps, self.settings.batch_size)
        return Drawn(made.pictures, made.text.seconds, sum(step.seconds for step in made.steps), made.decode.seconds)

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Call the module."""
        with torch.inference_mode():
            return self.module(*(self._tensor(name, value) for name, value in inputs.items())).float().cpu().numpy()

    def _tensor(self, name: str, value: np.ndarray) -> torch.Tensor:
        """Cast what is data; ids stay integers and the timestep float32, from which diffusers embeds it."""
        tensor = torch.from_numpy(value).to(self.settings.device)
        if name in ("ids", "timestep"):
            return tensor
        tensor = tensor.to(self.dtype)
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
