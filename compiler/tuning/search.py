"""--tune-minutes, --tune-trials: tilings of a model's kernels are measured, first where most of its time is spent."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from compiler.kernels.tiling import choices
from compiler.kernels.tunable import TUNABLE
from compiler.tuning.measure import Workshop
from compiler.tuning.records import FAILED, Chosen, Writer
from compiler.tuning.tasks import Task
from utils import units
from utils.progress import progress, say

BATCH = 6  # candidates that are built at once
PATIENCE = 30  # trials without a gain after which a task gives up its turn for good
HOPE = 0.1  # gain that is expected of a task at first
RANDOM_SHARE = 0.3  # of candidates that are drawn anew rather than near the best
TELL_SECONDS = 30  # between lines about the state
CONFIRMATIONS = 3  # rounds in which a new best and the kernel as it is are timed in turn


@dataclass
class Search:
    """The search for one task's best tiling."""

    task: Task
    writer: Writer
    since_gain: int = 0
    confirmed: list[Chosen] = field(default_factory=list)

    @property
    def own(self) -> float:
        """Seconds of the kernel as it is."""
        seconds = self.writer.records.time(self.task.key, {})
        return math.inf if seconds is None else seconds

    @property
    def best(self) -> tuple[Chosen, float]:
        """The fastest choice so far, and its seconds."""
        return self.writer.records.best(self.task.key) or ({}, math.inf)

    @property
    def seconds(self) -> float:
        """Seconds of all its calls in a picture, with the faster of both."""
        return self.task.calls * min(self.own, self.best[1])

    @property
    def promise(self) -> float:
        """Seconds of a picture that more trials may gain; 0 when it has given up."""
        if self.since_gain >= PATIENCE or self.own >= FAILED:  # what can't be compared is not worth a trial
            return 0.0
        return self.seconds * HOPE / (1 + self.since_gain / BATCH)

    def propose(self, rng: random.Random, elsewhere: Sequence[Chosen] = ()) -> list[Chosen]:
        """Return choices that were never tried.

        First those that are best ``elsewhere``, then near the best, which differ in one or two fields, and drawn anew.
        """
        space = choices(TUNABLE[self.task.key[0]].tiling)
        own = {name: values[0] for name, values in space.items()}
        found: list[Chosen] = []
        for chosen in elsewhere:
            if chosen not in found and self.writer.records.time(self.task.key, chosen) is None:
                found.append(chosen)
        if found:
            return found[:BATCH]
        for _ in range(50 * BATCH):
            near = rng.random() >= RANDOM_SHARE
            start = {**own, **self.best[0]} if near else {name: rng.choice(values) for name, values in space.items()}
            for name in rng.sample(list(space), rng.randint(1, 2) if near else 0):
                start[name] = rng.choice(space[name])
            chosen = {name: value for name, value in start.items() if value != own[name]}
            if chosen not in found and self.writer.records.time(self.task.key, chosen) is None:
                found.append(chosen)
            if len(found) == BATCH:
                break
        return found


class Tuner:
    """Spends minutes or trials on the tasks of a model; each trial is on disk before the next begins."""

    def __init__(self, tasks: list[Task], writer: Writer, workshop: Workshop, seed: int = 0) -> None:
        self.searches = [Search(task, writer) for task in tasks]
        self.writer, self.workshop, self.random = writer, workshop, random.Random(seed)  # noqa: S311 - draws candidates
        self.failed = 0

    def _measure(self, search: Search, many: list[Chosen]) -> Iterator[tuple[Chosen, float]]:
        task = search.task
        for chosen, result in self.workshop.candidates(task.key, many):
            if isinstance(result, str):
                self.failed += 1
                result = [FAILED]
            self.writer.commit(task.key, task.workload, chosen, result)
            yield chosen, statistics.median(result)

    def trials(self) -> Iterator[str]:
        """Measure one candidate after the other and yield a line of what is known, without end until none is left."""
        for search in self.searches:
            if search.own == math.inf:
                for _ in self._measure(search, [{}]):
                    yield self._state(search)
        while self.searches and (search := max(self.searches, key=lambda s: s.promise)).promise > 0:
            before, many = search.best[1], search.propose(self.random, self._elsewhere(search))
            if not many:
                search.since_gain = PATIENCE
                continue
            for _ in self._measure(search, many):
                search.since_gain += 1
                yield self._state(search)
            yield from self._confirm(search)
            search.since_gain = 0 if search.best[1] < before else search.since_gain

    def _elsewhere(self, search: Search) -> list[Chosen]:
        """Return what is best for other tasks of the same kernel, the largest gain first."""
        others = [other for other in self.searches if other.task.key[0] == search.task.key[0] and other is not search]
        return [other.best[0] for other in sorted(others, key=lambda o: o.best[1] / o.own) if other.best[0]]

    def _confirm(self, search: Search) -> Iterator[str]:
        """Time a new best and the kernel as it is once more, in turn: the luckiest of many is not the fastest.

        One round without a gain refutes it. What is the best after that is timed again as well, unless it was.
        """
        records, key = search.writer.records, search.task.key
        while records.gains(key) and (best := search.best[0]) not in search.confirmed:
            search.confirmed.append(best)
            for _ in range(CONFIRMATIONS):
                for _ in self._measure(search, [{}, best]):
                    yield self._state(search)
                if search.best[0] != best:
                    break

    def _state(self, search: Search) -> str:
        total, own = (
            sum(s.seconds for s in self.searches if s.own < FAILED),
            sum(s.task.calls * s.own for s in self.searches if s.own < FAILED),
        )
        left = sum(s.promise > 0 for s in self.searches)
        return (
            f"{search.task.key[0]}; {left} of {len(self.searches)} tasks go on; kernels of a picture "
            f"{units.seconds(total)}, {total / own if own else 1:.3f} of what they took, {self.failed} failed"
        )


def tune(tasks: list[Task], writer: Writer, workshop: Workshop, minutes: float, trials: int) -> None:
    """Tune until minutes or trials (0: no limit) are spent, or nothing promises a gain any more.

    Ctrl-C ends it at any time: what was measured is kept.
    """
    start, spent, state, told = time.monotonic(), 0, "nothing to tune", 0.0
    tuner = Tuner(tasks, writer, workshop)
    try:
        for state in progress(tuner.trials(), "tune", trials or None):
            spent, gone = spent + 1, time.monotonic() - start
            if (minutes and gone >= minutes * 60) or (trials and spent >= trials):
                break
            if gone - told >= TELL_SECONDS:
                left = f", {units.seconds(minutes * 60 - gone)} left" if minutes else ""
                say(f"{spent} trials{left}: {state}")
                told = gone
    finally:
        writer.close((time.monotonic() - start) / 60)
    say(f"tuned: {spent} trials in {units.seconds(time.monotonic() - start)}: {state}")
