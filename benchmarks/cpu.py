"""Compare this project with its peers on this CPU: the same calls in turn, one process a backend.

python -m benchmarks.cpu --json FILE
"""

from __future__ import annotations

import contextlib
import statistics
import time
from dataclasses import fields

from backends.peer import Settings
from benchmarks.config import CpuConfig
from benchmarks.results import Results, case_name
from benchmarks.session import Session, model_name, versions
from benchmarks.workers import Worker, WorkerError
from utils import units
from utils.command_line import parse
from utils.cpu import cpu_name, host_instruction_sets, physical_cores
from utils.errors import run_script
from utils.progress import progress, say

EXAMPLES = """
  python -m benchmarks.cpu --json cpu.json
  python -m benchmarks.cpu --json unet.json --components unet --backends openvino,tvm --dtype float32 --runs 7
  python -m benchmarks.cpu --json tiny.json --model random:tiny --artifacts-dir artifacts
"""
FOLDERS = ("json", "work", "artifacts_dir")  # say nothing about what was measured
PAUSE_SECONDS = 0.05  # idle threads of the one before spin for some milliseconds


class Comparison:
    """One run of the command: what is asked for, the session, the results so far."""

    def __init__(self, config: CpuConfig) -> None:
        self.config = config
        work = config.work.absolute()
        threads = physical_cores() if config.num_threads is None else config.num_threads
        settings = Settings(
            model=model_name(config.model),
            dtype="float32",
            height=config.height,
            width=config.width,
            num_threads=threads,
            steps=config.steps,
            folder=work,
            artifacts_dir=None if config.artifacts_dir is None else config.artifacts_dir.absolute(),
        )
        self.session = Session(settings, work)
        self.results = Results(
            {
                "cpu": cpu_name(),
                "features": host_instruction_sets() or [],
                "threads": threads,
                "versions": versions(),
                "settings": {f.name: getattr(config, f.name) for f in fields(config) if f.name not in FOLDERS},
            }
        )

    def run(self) -> Results:
        """Prepare what is kept on disk, then measure case by case; the file is written after each.

        Raises:
            UserError: the model can't be loaded, or can't make this size.
        """
        self.session.make_references(self.config.component_names)
        for dtype in self.config.dtypes:
            self.session.convert(self.config.backend_names, self.config.component_names, dtype)
        for component, dtype in self.config.cases:
            self._measure(component, dtype)
            assert self.config.json is not None  # noqa: S101 - CpuConfig refuses None
            self.results.write(self.config.json)
        return self.results

    def _measure(self, component: str, dtype: str) -> None:
        """Load one component in all backends, one after the other, and call it in turn."""
        with contextlib.ExitStack() as stack:
            workers = {}
            for backend in self.config.backend_names:
                name = case_name(component, dtype, backend)
                if (backend, dtype) in self.session.refused:
                    self._skip(name, self.session.refused[backend, dtype])
                    continue
                worker = stack.enter_context(self.session.worker("serve", backend, [component], dtype))
                try:
                    self.results.prepare_seconds[name] = worker.start()["prepare_seconds"]
                    workers[name] = worker
                except WorkerError as error:
                    worker.close()
                    self._skip(name, str(error))
            self._call_in_turn(workers, f"{component} {dtype}")

    def _call_in_turn(self, workers: dict[str, Worker], description: str) -> None:
        """Call each worker once a round, beginning with another one each time. One that fails leaves the rounds."""
        answers: dict[str, list[dict]] = {name: [] for name in workers}
        rounds = self.config.warmups + self.config.runs
        for i in progress(range(rounds), description, rounds):
            names = list(workers)
            for name in names[i % len(names) :] + names[: i % len(names)] if names else ():
                time.sleep(PAUSE_SECONDS)
                try:
                    answers[name].append(workers[name].run())
                except WorkerError as error:
                    workers.pop(name).close()
                    self._skip(name, str(error))
        for name in workers:
            counted = answers[name][self.config.warmups :]
            self.results.seconds[name] = [answer["seconds"] for answer in counted]
            self.results.peak_memory[name] = counted[-1]["peak_memory"]
            self.results.psnr[name] = min(answer["psnr"] for answer in counted)
            say(f"{name}: {units.seconds(statistics.median(self.results.seconds[name]))}")

    def _skip(self, name: str, reason: str) -> None:
        self.results.prepare_seconds.pop(name, None)
        self.results.skipped[name] = reason
        say(f"{name}: skipped: {reason}")


def main(argv: list[str]) -> None:
    """Measure what the flags say."""
    config = parse(CpuConfig, argv, (__doc__ or "").splitlines()[0], EXAMPLES)
    results = Comparison(config).run()
    say(f"{results.environment['cpu']}, {results.environment['threads']} threads; ratio: our seconds / theirs")
    say(results.table())
    say(f"wrote {config.json}")


if __name__ == "__main__":
    run_script(main)
