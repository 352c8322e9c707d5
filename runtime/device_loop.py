"""The denoising loop on a GPU: latents, guidance and the sampler's steps never leave it.

A linear sampler says all of its factors before the first step (see ``schedulers.moves``). They, the timesteps and
the noise are copied to the device at once; then the loop only launches kernels, and whoever reads the latents waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.artifact import FunctionType
from runtime.engine import Engine
from schedulers import Noise, Scheduler
from schedulers.combination import Combination
from schedulers.moves import Move

Key = tuple[str, int]  # "x", "output" or "noise", and the step; of a combination's keys the first two
Tensor = Any  # on the device


@dataclass(frozen=True)
class Done:
    """A step that was launched at ``start``, by ``time.perf_counter``; who reads ``x`` or ``output`` waits for it."""

    index: int
    start: float
    x: Tensor
    output: Tensor


class _Sum:
    """A function of the sampler's, whose inputs are factors, latents and outputs of the UNet."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.engine, self.function = engine, engine.prepare(name)
        kind: FunctionType = engine.description.functions[name]
        factors, *tensors = kind.inputs
        self.rows, self.columns = factors.shape
        blank = {tensor.name: engine.place(np.zeros(tensor.shape, np.float32)) for tensor in tensors}
        self.latents, self.outputs = ([blank[n] for n in blank if n.startswith(what)] for what in ("latents", "output"))
        self.parts = (self.columns - len(self.latents)) // len(self.outputs)

    def of(self, wanted: Combination) -> Callable[[Mapping[Key, Tensor]], Tensor]:
        """Return what computes ``wanted`` of arrays; its factors are on the device from now on."""
        keys = list(dict.fromkeys((kind, step) for kind, step, _ in wanted.terms))
        latents = [key for key in keys if key[0] != "output"]
        outputs = [key for key in keys if key[0] == "output"]
        if len(latents) > len(self.latents) or len(outputs) > len(self.outputs):
            raise ValueError(f"a step of {len(latents)} latents and {len(outputs)} outputs: models/sampler.py has less")
        row = np.zeros(self.columns, np.float32)
        for (kind, step, part), factor in wanted.terms.items():
            if kind == "output":
                row[len(self.latents) + self.parts * outputs.index((kind, step)) + part] = factor
            else:
                row[latents.index((kind, step))] = factor
        factors = self.engine.place(np.tile(row, (self.rows, 1)))

        def call(arrays: Mapping[Key, Tensor]) -> Tensor:
            given = [arrays[key] for key in latents] + self.latents[len(latents) :]
            return self.function(factors, *given, *(arrays[key] for key in outputs), *self.outputs[len(outputs) :])

        return call


class DeviceLoop:
    """Loops of one artifact: the functions of its ``unet``, for prompts that are given, and of its ``sampler``."""

    def __init__(self, unet: Engine, sampler: Engine, guided: bool, context: np.ndarray) -> None:
        name = "guided" if guided else "unguided"
        self.predict = unet.prepare(name, context=context)
        self.place = sampler.place
        self.after = _Sum(sampler, name)
        self.seen = _Sum(sampler, "guided_input") if guided else self.after

    def run(self, scheduler: Scheduler, planned: list[Move], x: np.ndarray, noise: Noise) -> Iterator[Done]:
        """Make the steps that ``moves`` planned from ``x``, float32; it and what ``noise`` draws are whole batches."""
        arrays: dict[Key, Tensor] = {("x", 0): self.place(x)}
        last: dict[Key, int] = {}
        for i, move in enumerate(planned):
            last.update({(kind, step): i for kind, step, _ in move.after.terms})
        for key in sorted(key for key in last if key[0] == "noise"):
            arrays[key] = self.place(noise(x.shape))
        timesteps = [self.place(np.array([t], np.float32)) for t in scheduler.timesteps]
        ready = [(self.seen.of(move.seen), self.after.of(move.after)) for move in planned]
        for i, (see, advance) in enumerate(ready):
            start = time.perf_counter()
            arrays["output", i] = self.predict(see(arrays), timesteps[i])
            arrays["x", i + 1] = advance(arrays)
            yield Done(i, start, arrays["x", i + 1], arrays["output", i])
            for key in [key for key in arrays if last.get(key, i + 1) <= i]:
                del arrays[key]
