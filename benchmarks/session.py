"""What all measurements of one run share: settings, workers, what is kept on disk, and where it ran."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from backends.peer import CONVERTED, Settings
from benchmarks.schema import Environment
from benchmarks.workers import Worker, WorkerError
from utils.config import ROOT
from utils.cpu import cpu_name, host_instruction_sets, physical_cores
from utils.errors import UserError
from utils.memory import total_memory
from utils.progress import say

PACKAGES = ("apache-tvm", "torch", "diffusers", "onnxruntime", "openvino", "tomesd", "numpy")


class Session:
    """Makes workers with the same settings and their inputs.

    ``settings`` need not name a folder of the model or a size yet: ``make_references`` fills them in.
    """

    def __init__(self, settings: Settings, work: Path) -> None:
        self.settings, self.work = settings, work
        self.refused: dict[tuple[str, str], str] = {}  # backend and dtype that can't be had, and why

    def variant(self, **changes: Any) -> Session:
        """Return a session of other settings, on the same references."""
        return Session(replace(self.settings, **changes), self.work)

    def worker(self, task: str, backend: str, components: Sequence[str], dtype: str) -> Worker:
        """Start the process of a backend for a task of ``backends.worker``."""
        settings = replace(self.settings, dtype=dtype)
        log = self.work / "logs" / f"{'-'.join([task, backend, *components, settings.variant])}.log"
        return Worker(task, backend, components, settings, log)

    def make_references(self, components: Sequence[str]) -> None:
        """Have inputs and references made, unless they are there.

        Raises:
            UserError: the model can't be loaded, or can't make this size.
        """
        first = self.variant(folder=self.work)  # in which the worker names a folder of the model
        with first.worker("reference", "eager", components, "float32") as worker:
            try:
                self.settings = Settings.from_json(worker.start()["settings"])
            except WorkerError as error:
                raise UserError(str(error)) from None

    def convert(self, backends: Sequence[str], components: Sequence[str], dtype: str) -> None:
        """Have the backends put on disk what they load, and note those that can't."""
        for backend in (name for name in backends if name in CONVERTED):
            say(f"{backend} {dtype}: preparing {', '.join(components)}")
            with self.worker("convert", backend, components, dtype) as worker:
                try:
                    worker.start()
                except WorkerError as error:
                    self.refused[backend, dtype] = str(error)


def model_name(model: str) -> str:
    """Return a checkpoint's name as workers take it, which run in another folder."""
    path = Path(model).expanduser()
    return str(path.absolute()) if path.exists() else model


def versions() -> dict[str, str | None]:
    """Return the versions of the packages that are compared, None for those that are not installed."""
    return {name: _version(name) for name in PACKAGES}


def environment(num_threads: int) -> Environment:
    """Return where this runs."""
    return Environment(
        cpu=cpu_name(),
        features=host_instruction_sets() or [],
        cores=physical_cores(),
        threads=num_threads,
        memory=total_memory(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        versions=versions(),
        commit=_commit(),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit of the sources, with ``+`` where they differ from it; None outside of git."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        environ = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=True)  # noqa: S603
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
