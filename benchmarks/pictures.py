"""Whole pictures of several backends side by side: the same prompt, seed, steps and sampler, in turn."""

from __future__ import annotations

import contextlib
import random
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backends.peer import PICTURE
from benchmarks.results import OURS
from benchmarks.schema import Backend, Latency, Throughput
from benchmarks.session import Session
from benchmarks.statistics import interval, linear_fit, percentile
from benchmarks.workers import Worker, WorkerError
from utils import units
from utils.memory import available_memory
from utils.progress import progress, say

PAUSE_SECONDS = 0.05  # idle threads of the one before spin for some milliseconds
LEAST_POINTS = 3  # of a line
NEED, NEED_MORE = 2.5, 1_000_000_000  # of a loaded backend: times the model's parameters, and bytes beside them


@dataclass
class Run:
    """A backend that is loaded: its process, what it said when it was ready, and its pictures so far."""

    name: str
    worker: Worker
    ready: dict[str, Any]
    first_picture_seconds: float
    answers: list[dict[str, Any]] = field(default_factory=list)

    def seconds(self, part: str = "total_seconds") -> list[float]:
        """Return a part's seconds of each picture that counts."""
        return [answer[part] for answer in self.answers]


def groups(names: Sequence[str], needed: float, available: float | None) -> list[list[str]]:
    """Return which backends are loaded at once, ``needed`` bytes each.

    All of them where they fit; else each peer with ours beside it, so that both are still timed in turn.
    """
    if not names:
        return []
    if available is None or needed * len(names) <= available:
        return [list(names)]
    peers = [name for name in names if name != OURS]
    return [[OURS, name] if OURS in names else [name] for name in peers] or [[OURS]]


def keep(path: str, base: Path) -> str:
    """Copy a picture that a worker drew into ``base/pictures``, and return its path as a file in ``base`` names it."""
    drawn = Path(path)
    names = [folder.name for folder in (drawn.parents[2], drawn.parents[1], drawn.parent)]  # model, size; run; variant
    kept = base / "pictures" / f"{'-'.join(names)}.png"
    kept.parent.mkdir(exist_ok=True)
    shutil.copyfile(drawn, kept)
    return kept.relative_to(base).as_posix()


def in_turn(loaded: Sequence[Run], i: int) -> Iterator[Run]:
    """Yield who draws in round ``i``, beginning with another one each time."""
    first = i % len(loaded) if loaded else 0
    for run in [*loaded[first:], *loaded[:first]]:
        time.sleep(PAUSE_SECONDS)
        yield run


class Pictures:
    """Pictures at one resolution. ``base`` is the folder that paths in the results are relative to."""

    def __init__(self, session: Session, base: Path, dtype: str) -> None:
        self.session, self.base, self.dtype = session, base, dtype
        self.skipped: dict[str, str] = {}

    def prepare(self, names: Sequence[str]) -> None:
        """Make references and what the backends load.

        Raises:
            UserError: the model can't be loaded, or can't make this size.
        """
        self.session.make_references([PICTURE])
        self.session.convert(names, [PICTURE], self.dtype)

    @property
    def resolution(self) -> str:
        """Width and height in pixels, ``512x512``."""
        return f"{self.session.settings.width}x{self.session.settings.height}"

    @property
    def _steps(self) -> int:
        """Steps of all pictures that are made at once."""
        return self.session.settings.steps * self.session.settings.batch_size

    @contextlib.contextmanager
    def running(self, name: str) -> Iterator[Run | None]:
        """Load a backend and have it draw a first picture; None where it can't, which is noted."""
        if (name, self.dtype) in self.session.refused:
            self.skip(name, self.session.refused[name, self.dtype])
            yield None
            return
        start = time.perf_counter()
        with self.session.worker("draw", name, [PICTURE], self.dtype) as worker:
            run = None
            try:
                ready = worker.start()
                worker.draw(self.session.settings.steps, warm=False)
                run = Run(name, worker, ready, time.perf_counter() - start)
            except WorkerError as error:
                self.skip(name, str(error))
            yield run

    def skip(self, name: str, reason: str) -> None:
        """Note why a backend has no figures."""
        self.skipped[name] = reason
        say(f"{name}: skipped: {reason}")

    def side_by_side(self, names: Sequence[str], runs: int, warmups: int) -> Iterator[Backend]:
        """Measure the backends and yield a row for each; those of what was done before Ctrl-C too."""
        needed = NEED * self.session.settings.model_bytes + NEED_MORE
        rows: dict[str, Backend] = {}
        refused = self.session.refused
        able = [name for name in names if (name, self.dtype) not in refused]
        for name in names:
            if name not in able:
                self.skip(name, refused[name, self.dtype])
        try:
            for group in groups(able, needed, available_memory()):
                self._group(group, runs, warmups, rows)
        finally:
            for name in names:
                yield rows.get(name, Backend(name, self.resolution, self.skipped.get(name, "interrupted")))

    def _group(self, group: Sequence[str], runs: int, warmups: int, rows: dict[str, Backend]) -> None:
        """Have a group draw in turn, and put a row for each into ``rows``: of the rounds that were done."""
        with contextlib.ExitStack() as stack:
            loaded = [run for name in group if (run := stack.enter_context(self.running(name))) is not None]
            try:
                for i in progress(range(warmups + runs), f"pictures of {', '.join(group)}", warmups + runs):
                    self._round(loaded, i)
            finally:
                done = min((len(run.answers) for run in loaded), default=0)
                for run in loaded:
                    run.answers = run.answers[warmups:done]
                ours = next((run for run in loaded if run.name == OURS), None)
                rows.update({run.name: self._row(run, ours) for run in loaded if run.answers})

    def _round(self, loaded: list[Run], i: int) -> None:
        """Have each draw a picture. One that fails leaves the rounds."""
        for run in in_turn(loaded, i):
            try:
                run.answers.append(run.worker.draw(self.session.settings.steps))
            except WorkerError as error:
                loaded.remove(run)
                run.worker.close()
                self.skip(run.name, str(error))

    def _row(self, run: Run, ours: Run | None) -> Backend:
        total = run.seconds()
        shared = [] if ours is None else ours.seconds()[: len(total)]
        pairs = [] if run is ours else [a / b for a, b in zip(shared, total, strict=False)]
        say(f"{run.name}: {units.seconds(statistics.median(total))} a picture")
        return Backend(
            run.name,
            self.resolution,
            prepare_seconds=run.ready["prepare_seconds"],
            first_picture_seconds=run.first_picture_seconds,
            total_seconds=total,
            text_seconds=run.seconds("text_seconds"),
            unet_seconds=run.seconds("unet_seconds"),
            vae_seconds=run.seconds("vae_seconds"),
            iterations_per_second=self._steps / statistics.median(run.seconds("unet_seconds")),
            peak_memory=run.answers[-1]["peak_memory"],
            size=run.ready["size"],
            psnr=min(answer["psnr"] for answer in run.answers),
            ours_seconds=shared,
            ratio=statistics.median(pairs) if pairs else None,
            ratio_interval=list(interval(pairs)) if pairs else None,
            picture=keep(run.answers[-1]["picture"], self.base),
        )

    def _seconds(self, name: str, steps: Sequence[int], description: str) -> Iterator[list[float]]:
        """Draw with a backend, of so many steps each, and yield once the seconds: of what was done before it failed."""
        seconds: list[float] = []
        with self.running(name) as run:
            if run is None:
                return
            try:
                for index, count in enumerate(progress(steps, f"{description} of {name}", len(steps))):
                    seconds.append(run.worker.draw(count, warm=index == 0)["total_seconds"])
            except WorkerError as error:
                self.skip(name, str(error))
            finally:
                yield seconds

    def throughput(self, names: Sequence[str], most: int) -> Iterator[Throughput]:
        """Time pictures of 1 to ``most`` steps, in an order that is drawn, of one backend after the other."""
        order = random.Random(0).sample(range(1, most + 1), most)  # noqa: S311 - no secret
        for name in names:
            for seconds in self._seconds(name, order, "throughput"):
                if len(seconds) < LEAST_POINTS:
                    continue
                points = sorted(zip(order, seconds, strict=False))
                steps, seconds = [x for x, _ in points], [y for _, y in points]
                fit = linear_fit(steps, seconds)
                line = (fit.intercept, fit.slope, list(fit.interval), fit.r2)
                yield Throughput(name, self.resolution, steps, seconds, *line)

    def latency(self, names: Sequence[str], count: int) -> Iterator[Latency]:
        """Time ``count`` pictures of one backend after the other."""
        for name in names:
            for seconds in self._seconds(name, [self.session.settings.steps] * count, "latency"):
                if seconds:
                    yield Latency(name, self.resolution, seconds, *(percentile(seconds, q) for q in (50, 90, 99)))


def pair(before: Session, now: Session, name: str, runs: int, warmups: int, description: str) -> tuple[Run, Run] | str:
    """Have a backend draw with the settings of two sessions in turn, and return both, or why one of them can't.

    Where both are the same, one process draws and is returned twice.
    """
    with contextlib.ExitStack() as stack:
        loaded: list[Run] = []
        for side in (before, now) if before is not now else (now,):
            pictures = Pictures(side, side.work, side.settings.dtype)
            run = stack.enter_context(pictures.running(name))
            if run is None:
                return pictures.skipped[name]
            loaded.append(run)
        for i in progress(range(warmups + runs), description, warmups + runs):
            for run in in_turn(loaded, i):
                try:
                    run.answers.append(run.worker.draw(now.settings.steps))
                except WorkerError as error:
                    return str(error)
    for run in loaded:
        del run.answers[:warmups]
    return loaded[0], loaded[-1]
