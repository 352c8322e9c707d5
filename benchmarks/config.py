"""What ``python -m benchmarks.cpu`` compares."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from backends.peer import COMMAND, DTYPES, FUNCTIONS, PEERS
from runtime.artifact import Artifact
from utils.command_line import existing_parent, flag
from utils.config import BuildConfig, SamplingConfig
from utils.errors import UserError, choose

MAX_RUNS = 1000


@dataclass(frozen=True, kw_only=True)
class CpuConfig:
    """Which backends run which components, how often, and where the figures go. Sizes are in pixels."""

    json: Path | None = flag(None, "file of the results, in a folder that exists", metavar="FILE")
    model: str = flag("random:sd15", "checkpoint, as for build.py")
    backends: str = flag(",".join(PEERS), "what to run, separated by commas", metavar="NAME[,NAME]")
    components: str = flag(
        ",".join([*FUNCTIONS, COMMAND]), "what to measure; command is a picture from the command line"
    )
    dtype: str = flag(",".join(DTYPES), "precisions, separated by commas")
    runs: int = flag(5, "measured calls of each backend, in turn")
    warmups: int = flag(1, "calls before them that are not counted")
    steps: int = flag(20, "denoising steps of the command's picture")
    num_threads: int | None = flag(None, "CPU threads of every backend (default: the physical cores)")
    height: int | None = flag(None, "height in pixels, a multiple of 8 (default: the checkpoint's own)")
    width: int | None = flag(None, "width in pixels, a multiple of 8 (default: the checkpoint's own)")
    work: Path = flag(Path("outputs/benchmark"), "folder of converted models and outputs, kept for the next run")
    artifacts_dir: Path | None = flag(None, "artifact that build.py wrote (default: built in the work folder)")

    def __post_init__(self) -> None:
        names("--backends", self.backends, PEERS)
        names("--components", self.components, [*FUNCTIONS, COMMAND])
        names("--dtype", self.dtype, DTYPES)
        for name, value, low in (("--runs", self.runs, 1), ("--warmups", self.warmups, 0)):
            if not low <= value <= MAX_RUNS:
                raise UserError(f"{name} must be from {low} to {MAX_RUNS}, not {value}")
        check_file(self.json)
        parent = existing_parent(self.work)
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise UserError(f"--work {self.work}: no folder can be made in {parent}")
        SamplingConfig(steps=self.steps, num_threads=self.num_threads, output_dir=self.work)
        BuildConfig(model=self.model, height=self.height, width=self.width, output_dir=self.work)
        if self.artifacts_dir is not None:
            Artifact(self.artifacts_dir)

    @property
    def backend_names(self) -> list[str]:
        """The backends, in the order of the flag."""
        return names("--backends", self.backends, PEERS)

    @property
    def component_names(self) -> list[str]:
        """The components, in the order of the flag."""
        return names("--components", self.components, [*FUNCTIONS, COMMAND])

    @property
    def dtypes(self) -> list[str]:
        """The precisions, in the order of the flag."""
        return names("--dtype", self.dtype, DTYPES)

    @property
    def cases(self) -> list[tuple[str, str]]:
        """Components with a precision each, in the order of their flags."""
        return [(component, dtype) for component in self.component_names for dtype in self.dtypes]


def names(name: str, value: str, choices: Iterable[str]) -> list[str]:
    """Return the names that a flag lists, each once."""
    return list(dict.fromkeys(choose(name, word.strip(), choices) for word in value.split(",")))


def check_file(path: Path | None) -> None:
    if path is None:
        raise UserError("--json is missing; name the file of the results")
    if path.is_dir():
        raise UserError(f"--json {path} is a folder; name a file")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--json {path}: there is no folder {path.parent}; make it first")
    if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise UserError(f"--json {path}: no permission to write in {path.parent}")
