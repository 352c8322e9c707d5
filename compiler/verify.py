"""The gate: every compiled function against PyTorch float32, through the engine that users run."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch

from models.components import Component, Function
from runtime.clock import KernelClock, spans
from runtime.engine import Engine
from runtime.quality import FLOOR, psnr
from utils.errors import UserError


@dataclass(frozen=True)
class Parity:
    """PSNR (dB) by function, seconds by kernel symbol over all functions."""

    psnr: dict[str, float]
    seconds: dict[str, float]


def reference(component: Component, function: Function) -> np.ndarray:
    """Return what PyTorch makes of a function's example inputs."""
    with torch.no_grad():
        return component.module(*(value for _, value in function.inputs)).numpy()


def verify(component: Component, engine: Engine, dtype: str) -> Parity:
    """Compare every function of ``component`` with PyTorch on its example inputs.

    Raises:
        UserError: a function is below the floor; component, PSNR and floor are named.
    """
    clock = KernelClock()
    seconds: dict[str, float] = defaultdict(float)
    engine.instrument(clock.observer)
    measured = {}
    for function in component.functions:
        inputs = [value for _, value in function.inputs]
        clock.start()
        result = engine(function.name, *(value.numpy() for value in inputs))
        for name, start, end in spans(clock.readings()):
            seconds[name] += end - start
        measured[function.name] = psnr(reference(component, function), result)
        if not measured[function.name] >= FLOOR[dtype]:
            raise UserError(
                f"{component.name}.{function.name}: PSNR {measured[function.name]:.1f} dB against PyTorch is below the "
                f"floor of {FLOOR[dtype]:.0f} dB; nothing was saved"
            )
    engine.instrument(None)
    return Parity(measured, dict(seconds))
