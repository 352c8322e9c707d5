"""Pictures of both scripts, and how far apart they are."""

import math
from pathlib import Path

import numpy as np
from PIL import Image


def read(path: Path) -> np.ndarray:
    """Return a PNG as float64 [H, W, 3], 0 to 255."""
    with Image.open(path) as file:
        assert file.mode == "RGB"
        return np.asarray(file).astype(np.float64)


def read_all(folder: Path) -> list[np.ndarray]:
    """Return the pictures of a folder in the order of their names, which is that of their seeds."""
    names = sorted(folder.iterdir())
    assert names and all(path.suffix == ".png" for path in names), names
    return [read(path) for path in names]


def picture_psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Return the PSNR of two pictures in dB, with a peak of 255."""
    assert a.shape == b.shape
    error = np.mean((a - b) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)
