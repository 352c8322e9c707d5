"""This project: the artifact of build.py, through the engine that users run."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Mapping, Sequence

import numpy as np

from backends.command import Command, run_python
from backends.peer import COMMAND, FUNCTIONS, GUIDANCE_SCALE, PICTURE, PROMPT, Drawn, Peer
from runtime.artifact import Artifact
from utils.errors import UserError
from utils.files import folder_size


class Tvm(Peer):
    """A component of an artifact: the one that is given, else one that build.py makes."""

    name = "tvm"

    def convert(self, components: Sequence[str]) -> None:
        """Build the artifact, unless one is given; build.py takes again what nothing changed for."""
        if self.settings.artifacts_dir is None:
            self._build()
        self._artifact()

    def prepare(self, component: str) -> dict[str, float]:
        """Load the component's library and map its parameters."""
        artifact = self._artifact()
        self.command = None
        seconds = {"build": sum(part.build_seconds for part in artifact.manifest.components.values())}
        if component == COMMAND:
            arguments = ["inference.py", "--artifacts-dir", self.settings.artifact]
            self.command = Command(arguments, self.settings, self.settings.output_folder(component, self.name))
            return seconds
        start = time.perf_counter()
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # TVM would import it
        if component == PICTURE:
            from runtime.pipeline import Pipeline

            self.pipeline = Pipeline(artifact, self.settings.device, self.settings.num_threads)
            return {**seconds, "load": time.perf_counter() - start}
        from runtime.engine import Engine, resolve_device, set_num_threads

        device = resolve_device(self.settings.device, artifact.manifest)
        set_num_threads(self.settings.num_threads)
        self.engine, self.function = Engine(artifact, component, device), FUNCTIONS[component]
        return {**seconds, "load": time.perf_counter() - start}

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Call the component's function, or the whole command."""
        if self.command is not None:
            return self.command.run()
        wanted = self.engine.description.functions[self.function].inputs
        values = [inputs[tensor.name].astype(tensor.dtype, copy=False) for tensor in wanted]
        return self.engine(self.function, *values).astype(np.float32, copy=False)

    def draw(self, seed: int, steps: int) -> Drawn:
        """Draw as inference.py does."""
        from runtime.picture import to_uint8
        from runtime.pipeline import Request

        label = self.settings.scheduler_label
        request = Request(prompt=PROMPT, steps=steps, guidance_scale=GUIDANCE_SCALE, scheduler_label=label)
        times = [time.perf_counter()]
        self.pipeline.encode.cache_clear()
        self.pipeline.context(request)
        times.append(time.perf_counter())
        *_, last = self.pipeline.sample(request, range(seed, seed + self.settings.batch_size))
        times.append(time.perf_counter())
        pictures = np.stack([to_uint8(picture) for picture in self.pipeline.decode(last.x_t)])
        times.append(time.perf_counter())
        text, unet, vae = (after - before for before, after in itertools.pairwise(times))
        return Drawn(pictures, text, unet, vae)

    def size(self) -> int | None:
        """Return the bytes of the artifact."""
        return folder_size(self.settings.artifact)

    def peak_memory(self) -> int | None:
        """Return the largest resident size so far, of the command where it is one."""
        return super().peak_memory() if self.command is None else self.command.peak_memory()

    def _artifact(self) -> Artifact:
        """Return the artifact, which must be of the model, size and dtype that all peers run."""
        artifact = Artifact(self.settings.artifact)
        settings, manifest = self.settings, artifact.manifest
        for what, found, wanted in (
            ("dtype", manifest.dtype, settings.dtype),
            ("height", manifest.height, settings.height),
            ("width", manifest.width, settings.width),
            ("batch size", manifest.batch_size, settings.batch_size),
            ("model", manifest.model_digest, settings.model_digest),
        ):
            if found != wanted:
                raise UserError(f"the artifact has {what} {found}, not {wanted}")
        return artifact

    def _build(self) -> None:
        settings = self.settings
        flags: dict[str, object] = {
            "--model": settings.model,
            "--target": "llvm" if settings.device == "cpu" else settings.device,
            "--output-dir": self.settings.artifact,
            "--height": settings.height,
            "--width": settings.width,
            "--num-threads": settings.num_threads,
        }
        if settings.dtype != "float32":
            flags["--dtype"] = settings.dtype
        if settings.batch_size > 1:
            flags["--batch-size"] = settings.batch_size
        if settings.disable:
            flags |= {"--disable": settings.disable, "--enable-cache": 0}  # of no use to other builds
        merges = [] if settings.tome_ratio is None else ["--apply-tome"]
        if settings.tome_ratio is not None:
            flags["--tome-ratio"] = settings.tome_ratio
        try:
            run_python(["build.py", *merges], flags)
        except UserError as error:
            raise UserError(f"build.py: {error}") from None
