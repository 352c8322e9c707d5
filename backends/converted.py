"""What the peers share that convert each component to a file of their own, and draw with our sampler loop."""

from __future__ import annotations

import json
import shutil
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from backends.model_pipeline import PIPELINE, ModelPipeline
from backends.peer import COMMAND, FUNCTIONS, GUIDANCE_SCALE, PICTURE, PROMPT, Drawn, Peer, Settings
from runtime.artifact import TOKENIZER
from utils.files import folder_size, write_whole

if TYPE_CHECKING:
    from models.assembly import Checkpoint
    from models.components import Component

CONVERT_SECONDS = "seconds.json"
Model = Callable[..., np.ndarray]


class Converted(Peer):
    """A peer that reads its components from a folder named by its package's version."""

    stage: ClassVar[str]  # what making the files is called

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.pipeline: ModelPipeline | None = None

    def unavailable(self) -> str | None:
        """Return why this peer can't run here, None when it can."""
        if find_spec(self.name) is None:
            return f"{self.name} is not installed; pip install -r requirements-bench.txt"
        return super().unavailable()

    @abstractmethod
    def write(self, part: Component, folder: Path) -> None:
        """Write the files of a component, traced at fixed shapes, into ``folder``."""

    @abstractmethod
    def open(self, folder: Path) -> Model:
        """Return a component as a function of arrays, ready to run."""

    @property
    def folder(self) -> Path:
        """The folder of what was converted, a folder a component."""
        batch = "" if self.settings.batch_size == 1 else f"-batch-{self.settings.batch_size}"
        return self.settings.folder / f"{self.name}-{version(self.name)}{batch}"

    def convert(self, components: Sequence[str]) -> None:
        """Write the files of each component, and for a picture what else makes one."""
        whole = COMMAND in components or PICTURE in components
        missing = [name for name in FUNCTIONS if (whole or name in components) and not (self.folder / name).is_dir()]
        if not missing and (not whole or (self.folder / PIPELINE).is_file()):
            return
        from backends.reference import load_parts

        checkpoint, parts = load_parts(self.settings)
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in missing:
            self._write_whole(parts[name], self.folder / name)
        if whole:
            self._describe(checkpoint, parts["vae_decoder"].functions[0].inputs[0][1].shape)

    def _write_whole(self, part: Component, folder: Path) -> None:
        """Have the folder of a component appear whole or not at all."""
        temporary = folder.with_name(f"partial-{folder.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        start = time.perf_counter()
        self.write(part, temporary)
        (temporary / CONVERT_SECONDS).write_text(json.dumps(time.perf_counter() - start))
        temporary.rename(folder)

    def _describe(self, checkpoint: Checkpoint, latent_shape: Sequence[int]) -> None:
        """Write what a picture needs beside the models."""
        write_whole(self.folder / TOKENIZER, checkpoint.tokenizer_json)
        values = {
            "model_name": checkpoint.name,
            "model_digest": checkpoint.digest,
            "scheduler": checkpoint.scheduler_config,
            "latent_shape": list(latent_shape[1:]),
            "batch_size": self.settings.batch_size,
        }
        write_whole(self.folder / PIPELINE, json.dumps(values))

    def convert_seconds(self, components: Sequence[str]) -> float:
        """Return what converting took, whenever that was."""
        return sum(json.loads((self.folder / name / CONVERT_SECONDS).read_text()) for name in components)

    def prepare(self, component: str) -> dict[str, float]:
        """Open a component, or all that make a picture."""
        start = time.perf_counter()
        if component == PICTURE:
            models = {name: self.open(self.folder / name) for name in FUNCTIONS}
            self.pipeline = ModelPipeline(self.folder, models, self.settings.scheduler_label)
        else:
            self.model = self.open(self.folder / component)
        seconds = time.perf_counter() - start
        return {
            self.stage: self.convert_seconds([component] if component in FUNCTIONS else list(FUNCTIONS)),
            "load": seconds,
        }

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Call the component that was prepared."""
        return self.model(*inputs.values())

    def draw(self, seed: int, steps: int) -> Drawn:
        """Draw a picture."""
        assert self.pipeline is not None  # noqa: S101 - prepared as PICTURE
        return self.pipeline.draw(PROMPT, "", seed, steps, GUIDANCE_SCALE)

    def size(self) -> int | None:
        """Return the bytes of the files."""
        return folder_size(self.folder)
