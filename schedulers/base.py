"""The interface that the denoising loop sees."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from schedulers.combination import Combination
from schedulers.noise import Noise
from schedulers.settings import Settings
from utils.errors import UserError


class Scheduler(ABC):
    """A sampler: it says where to call the model and moves x from one noise level to the next.

    The loop, from x = noise * init_noise_sigma, float32 [B, C, h, w]::

        scheduler.set_timesteps(steps)
        for i, t in enumerate(scheduler.timesteps):
            output = model(scheduler.scale_model_input(x, i), t)
            x = scheduler.step(output, i, x, noise)

    Attributes:
        timesteps: int64 or float32, one for each call of the model; more than ``steps`` for pndm.
        sigmas: float32, len(timesteps) + 1, noise over signal at each timestep, then where the run ends.
        init_noise_sigma: standard deviation of the first x.
    """

    label: ClassVar[str]
    class_name: ClassVar[str]  # in diffusers
    a1111_name: ClassVar[str]  # without the word for its noise levels
    timesteps: np.ndarray
    sigmas: np.ndarray
    init_noise_sigma: float = 1.0
    settings: Settings

    @property
    def sampler_name(self) -> str:
        """The name that A1111-style readers of a picture's metadata know, such as ``DPM++ 2M Karras``."""
        return self.a1111_name + (" Karras" if getattr(self.settings, "use_karras_sigmas", False) else "")

    def set_timesteps(self, steps: int) -> None:
        """Plan a run of ``steps`` steps and forget the run before.

        Raises:
            UserError: the sampler and its config cannot make this many steps.
        """
        if steps < 1:
            raise UserError(f"--steps must be 1 or more, not {steps}")
        self._plan(steps)

    @property
    def is_linear(self) -> bool:
        """Whether each step adds multiples of what was before, and no more."""
        return True

    @abstractmethod
    def _plan(self, steps: int) -> None:
        """Set ``timesteps`` and ``sigmas``."""

    def scale_model_input(self, x: Any, i: int) -> Any:
        """Return what the model is to see in place of x at step i."""
        return x

    def step(self, model_output: Any, i: int, x: Any, noise: Callable[..., Any] | None = None) -> Any:
        """Return x for step i + 1, float32, of x's shape.

        Steps are taken in order from 0: some samplers remember the outputs before.

        Args:
            model_output: float32, of x's shape.
            i: index in ``timesteps``.
            x: float32, the picture so far. Where the sampler ``is_linear``, a Combination will do, as will outputs and
                noise, and a Combination is returned.
            noise: where fresh noise is drawn from; euler-ancestral needs it, the others do not call it.
        """
        if not isinstance(x, Combination):
            model_output, x = np.asarray(model_output, np.float32), np.asarray(x, np.float32)
        return self._advance(model_output, i, x, noise)  # type: ignore[arg-type]  # a Combination does as an array does

    @abstractmethod
    def _advance(self, model_output: np.ndarray, i: int, x: np.ndarray, noise: Noise | None) -> np.ndarray:
        """Do ``step`` on float32 arrays."""
