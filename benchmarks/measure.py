"""What benchmark.py does: section by section, each written to the file as soon as it is measured."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from backends.peer import GUIDANCE_SCALE, PROMPT, SEED, Settings
from benchmarks import plot_style, plots, schema
from benchmarks.compare import compare_files
from benchmarks.flags import BenchmarkConfig
from benchmarks.ladder import ladder
from benchmarks.pictures import Pictures
from benchmarks.profiles import profiles
from benchmarks.report import write_report
from benchmarks.session import Session, environment, model_name
from benchmarks.tables import SECTIONS, tables
from benchmarks.tome import sweep
from utils.config import ROOT
from utils.cpu import physical_cores
from utils.errors import UserError
from utils.gpu import present_name
from utils.progress import say

PLACES = ("json", "report", "work", "compare", "backends")  # say nothing about what was measured


class Measurement:
    """One run: the sessions, one a resolution, and the results so far."""

    def __init__(self, config: BenchmarkConfig) -> None:
        self.config = config
        threads = physical_cores() if config.num_threads is None else config.num_threads
        settings = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in PLACES}
        model = Path(config.model).absolute()
        settings["model"] = str(model.relative_to(ROOT)) if model.is_relative_to(ROOT) else config.model
        settings["dtype"] = config.precision
        if config.device != "cpu":
            settings["gpu"] = present_name()
        fixed = {"prompt": PROMPT, "seed": SEED, "guidance_scale": GUIDANCE_SCALE, "num_threads": threads}
        self.results = schema.Results(environment(threads), {**settings, **fixed})
        self.sessions = [self._session(width, height, threads) for width, height in config.sizes]
        assert config.json is not None  # noqa: S101 - the config refuses None
        self.path = config.json

    def _session(self, width: int | None, height: int | None, threads: int) -> Session:
        config, work = self.config, self.config.work.absolute()
        settings = Settings(
            model=model_name(config.model),
            dtype=config.precision,
            device=config.device,
            height=height,
            width=width,
            num_threads=threads,
            steps=config.steps,
            folder=work,
            artifacts_dir=None,
            scheduler_label=config.scheduler_label,
            disable=config.disable,
            batch_size=config.batch_size,
        )
        return Session(settings, work)

    def run(self) -> None:
        """Measure all sections. After Ctrl-C, what was done is in the file, the tables and the report too.

        Raises:
            UserError: the model can't be loaded, or can't make a size, or no backend could be measured.
        """
        try:
            for section, rows in self._sections():
                for row in rows:
                    getattr(self.results, section).append(row)
                    schema.write(self.results, self.path)
        finally:
            self._tell()
        if not any(getattr(self.results, section) for section in SECTIONS):
            raise UserError(f"nothing could be measured, see above; {self.path} is not written")

    def _sections(self) -> Iterator[tuple[str, Iterable[Any]]]:
        config, base = self.config, self.path.absolute().parent
        names, runs, warmups = config.backend_names, config.runs, config.warmups
        for session in self.sessions:
            pictures = Pictures(session, base, config.precision)
            if config.compares_backends or config.throughput or config.latency_report:
                pictures.prepare(names)
            if config.compares_backends:
                yield "backends", pictures.side_by_side(names, runs, warmups)
            if config.throughput:
                yield "throughput", pictures.throughput(names, config.throughput)
            if config.latency_report:
                yield "latency", pictures.latency(names, config.latency_report)
            if config.enable_profiling:
                yield "profiles", profiles(session, base)
            if config.ladder:
                yield "ladder", ladder(session, runs, warmups)
            if config.attention or config.winograd:
                from benchmarks.layers import attention_rows, winograd_rows  # brings in torch and tvm

                yield from [("attention", attention_rows(session, runs))] if config.attention else []
                yield from [("winograd", winograd_rows(session, runs))] if config.winograd else []
            if config.tome_sweep is not None:
                yield "tome_sweep", sweep(session, config.ratios, runs, warmups, config.judge_images, base)

    def _tell(self) -> None:
        """Print, and write the report, unless nothing was measured."""
        if not any(getattr(self.results, section) for section in SECTIONS):
            return
        say(tables(self.results))
        say(f"wrote {self.path}")
        folder, base = self.config.report, self.path.absolute().parent
        if folder is None:
            return
        say(f"wrote {write_report(self.results, base, folder)}")
        if self.results.tome_sweep and plot_style.available():
            plots.write_tome_figure(self.results, folder / "tome.svg")
            plots.write_tome_grid(self.results, base, folder / "tome.png")
            say(f"wrote {folder / 'tome.svg'} and {folder / 'tome.png'}")


def run(config: BenchmarkConfig) -> None:
    """Measure what ``config`` says, or compare two files; ends the process with 1 if something became slower.

    Raises:
        UserError: a model, size or file that can't be used.
    """
    if config.compare is not None:
        sys.exit(compare_files(*config.compare))
    Measurement(config).run()
