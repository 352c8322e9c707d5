"""The parent's side of ``backends.worker``: one process a peer, asked in turn."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backends.held import held
from backends.peer import Settings
from utils.allocator import HUGE_PAGES
from utils.config import ROOT

GRACE_SECONDS = 10


class WorkerError(Exception):
    """A worker can't do what it was asked, or is no more. The text is the reason, on one line."""


class Worker:
    """A process of ``backends.worker``, for a ``with`` block: at its end the process and its children are gone.

    ``task``, ``peer`` and ``components`` are those of the job. ``log`` gets what the process writes to stderr.
    """

    def __init__(self, task: str, peer: str, components: Sequence[str], settings: Settings, log: Path) -> None:
        self._job = {"task": task, "peer": peer, "components": list(components), "settings": settings.to_json()}
        self._log = log
        self._closed = False
        log.parent.mkdir(parents=True, exist_ok=True)
        threads = str(settings.num_threads)
        with log.open("w", encoding="utf-8") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "backends.worker"],
                cwd=ROOT,
                env={**HUGE_PAGES, **os.environ, **held(), "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,  # a group of its own, so that its children can be ended with it
            )

    def start(self) -> dict[str, Any]:
        """Have the worker do its job, and return its answer.

        Raises:
            WorkerError: it can't.
        """
        return self._ask(json.dumps(self._job))

    def run(self) -> dict[str, Any]:
        """Have the worker call its component once, and return its answer: ``seconds``, ``psnr``, ``peak_memory``.

        Raises:
            WorkerError: it can't.
        """
        return self._ask("run")

    def draw(self, steps: int, warm: bool = True) -> dict[str, Any]:
        """Have the worker draw a picture, see ``backends.worker.Painter``, and return its answer.

        Raises:
            WorkerError: it can't.
        """
        return self._ask(json.dumps({"steps": steps, "warm": warm}))

    def _ask(self, line: str) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None  # noqa: S101 - both are pipes
        answer = ""
        with contextlib.suppress(BrokenPipeError):
            stdin.write(line + "\n")
            stdin.flush()
            answer = stdout.readline()
        if not answer.endswith("\n"):
            raise WorkerError(self._death())
        values = json.loads(answer)
        if "error" in values:
            raise WorkerError(values["error"])
        return values

    def _death(self) -> str:
        """Return why the process ended."""
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return "the process was killed (out of memory?)"
        if code < 0:
            return f"the process ended by {signal.Signals(-code).name}"
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return re.sub(r"\s+", " ", lines[-1]) if lines else f"the process ended with exit code {code}"

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process and its children. Nothing happens the second time."""
        if self._closed:
            return
        self._closed = True
        for sent in (signal.SIGTERM, signal.SIGKILL):  # the second one for children that outlive the process
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, sent)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE_SECONDS)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
