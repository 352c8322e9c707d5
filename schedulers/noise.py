"""Gaussian noise equal to PyTorch's CPU generator, in NumPy, so that a seed draws the same picture as in diffusers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from utils.errors import UserError

Noise = Callable[[Sequence[int]], np.ndarray]
"""Draws float32 noise of a shape. A `NoiseGenerator` is one, and so is what `per_picture` returns."""

_BLOCK = 16  # torch fills from 16 numbers on in blocks of 16: 8 cosines, then 8 sines


class NoiseGenerator:
    """The stream of ``torch.Generator("cpu").manual_seed(seed)``, as far as ``torch.randn`` in float32 reads it.

    Torch's engine is MT19937 seeded with the low 32 bits of the seed, which is NumPy's ``RandomState``. Torch turns its
    words into normal numbers in two ways (ATen/native/cpu/DistributionTemplates.h, ATen/core/DistributionsHelper.h):
    calls for 16 numbers or more work in blocks of 16 in float32, calls for fewer work in pairs in float64 and keep the
    second of a pair for the next such call.

    Raises:
        UserError: the seed is not a whole number from 0 to 2^64 - 1.
    """

    def __init__(self, seed: int) -> None:
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**64:
            raise UserError(f"--seed {seed} must be a whole number from 0 to {2**64 - 1}")
        self._stream = np.random.RandomState(int(seed) & 0xFFFFFFFF)
        self._second_of_pair: float | None = None

    def randn(self, shape: Sequence[int]) -> np.ndarray:
        """Return float32 noise of ``shape``, equal to ``torch.randn(shape, generator=...)`` to 1e-6."""
        size = int(np.prod(shape, dtype=np.int64))
        values = self._blocks(size) if size >= _BLOCK else np.array([self._single() for _ in range(size)])
        return values.astype(np.float32).reshape(tuple(shape))

    __call__ = randn

    def _words(self, count: int) -> np.ndarray:
        return self._stream.randint(0, 2**32, size=count, dtype=np.uint32)

    def _blocks(self, size: int) -> np.ndarray:
        words = self._words(size)
        rest = size % _BLOCK
        if rest == 0:
            return _box_muller(words)
        # Torch fills the whole blocks, then draws the last 16 numbers anew, over the end of what it has filled.
        last = _box_muller(self._words(_BLOCK))
        return np.concatenate([_box_muller(words[: size - rest])[: size - _BLOCK], last])

    def _single(self) -> float:
        """The next number of the path for fewer than 16: both of a pair share a radius."""
        if self._second_of_pair is not None:
            value, self._second_of_pair = self._second_of_pair, None
            return value
        words = self._words(4).astype(np.uint64)
        wide = (words[0::2] << np.uint64(32)) | words[1::2]
        turn, u = (wide & np.uint64(2**53 - 1)).astype(np.float64) * 2.0**-53
        radius = np.sqrt(-2.0 * np.log1p(-u))
        self._second_of_pair = float(radius * np.sin(2.0 * np.pi * turn))
        return float(radius * np.cos(2.0 * np.pi * turn))


def per_picture(generators: Sequence[NoiseGenerator]) -> Noise:
    """Return a ``noise(shape)`` that draws row i of the batch from generator i.

    So each picture of a batch has the noise that it would have alone, as with a list of generators in diffusers.

    Raises:
        ValueError: when called with a batch size other than the number of generators.
    """

    def noise(shape: Sequence[int]) -> np.ndarray:
        if shape[0] != len(generators):
            raise ValueError(f"{len(generators)} generators for a batch of {shape[0]}")
        return np.concatenate([generator.randn((1, *shape[1:])) for generator in generators])

    return noise


def _box_muller(words: np.ndarray) -> np.ndarray:
    """Turn 32-bit words, a multiple of 16, into as many normal numbers (float64) in torch's order."""
    uniform = (words & np.uint32(0xFFFFFF)).astype(np.float64).reshape(-1, 2, _BLOCK // 2) * 2.0**-24
    radius = np.sqrt(-2.0 * np.log(1.0 - uniform[:, 0]))
    angle = 2.0 * np.pi * uniform[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
