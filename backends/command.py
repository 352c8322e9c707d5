"""One picture from the command line: process started, model loaded, steps, PNG."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from backends.peer import GUIDANCE_SCALE, PROMPT, SEED, Settings
from utils.config import ROOT
from utils.errors import UserError

PICTURE = "picture.png"


def run_python(arguments: Sequence[object], flags: Mapping[str, object]) -> None:
    """Run Python in the repository's root with ``arguments`` and then ``flags``.

    Raises:
        UserError: it failed; the last line that it wrote.
    """
    command = [sys.executable, *map(str, arguments), *(str(word) for pair in flags.items() for word in pair)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)  # noqa: S603 - a list of our own
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(reason.removeprefix("error: "))


class Command:
    """A command line that draws one picture, with the flags that all of them share. ``arguments`` are Python's."""

    def __init__(self, arguments: Sequence[object], settings: Settings, folder: Path) -> None:
        self._arguments = arguments
        self._picture = folder / PICTURE
        self._flags = {
            "--prompt": PROMPT,
            "--seed": SEED,
            "--steps": settings.steps,
            "--guidance-scale": GUIDANCE_SCALE,
            "--num-threads": settings.num_threads,
            "--output-dir": folder,
            "--output-image": PICTURE,
        }

    def run(self) -> np.ndarray:
        """Run it and return its picture, uint8 [H, W, 3].

        Raises:
            UserError: it failed; the last line that it wrote.
        """
        self._picture.unlink(missing_ok=True)
        run_python(self._arguments, self._flags)
        with Image.open(self._picture) as picture:
            return np.asarray(picture)

    def peak_memory(self) -> int:
        """Return the largest resident size of a run so far, in bytes."""
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
