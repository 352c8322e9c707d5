"""torch.compile: the eager module through inductor, channels-last, on a GPU by max-autotune; of a picture the UNet."""

from __future__ import annotations

import os
import shutil
import time

from backends.diffusers import COMPILE_MODES
from backends.eager import Eager
from backends.peer import PICTURE, SEED


class Compiled(Eager):
    """A component's module, compiled."""

    name = "compile"
    compiles = True

    def prepare(self, component: str) -> dict[str, float]:
        """Load, and compile by a first call. No earlier run's cache is used, so that the seconds are the true ones."""
        cache = self.settings.folder / "inductor"
        shutil.rmtree(cache, ignore_errors=True)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
        seconds = super().prepare(component)
        start = time.perf_counter()
        if component == PICTURE:
            self.draw(SEED, 1)
        else:
            self.module.compile(mode=COMPILE_MODES[self.settings.device])
            self.run(self.settings.inputs(component))
        return {**seconds, "compile": time.perf_counter() - start}
