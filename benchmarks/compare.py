"""Compare two files of benchmark.py: which of their series became slower or faster, beyond noise.

The rule, on logarithms of seconds, for each series that both files have:

- its change is the median of all new runs over all old ones (Hodges and Lehmann 1963);
- its noise is the median ratio of two runs of one file (the spread of Bickel and Lehmann 1979). One disturbed run of
  five moves neither much. Five runs tell little of noise, so where there are four series or more its variance is
  averaged with that of the upper quartile of all, for half as many degrees of freedom more (after Smyth 2004);
- the machine's drift is the median change of all series, but no more than 2 %, and is taken off; of fewer than four
  series none is. Peers that did not change, diffusers say, are no better a control: they may be missing, are few and of
  one kind, and a new torch changes them. As 2 % is the most, a slow-down of everything is found too;
- its interval is Student's t with 95 % for all N series at once: 1 - 5 % / N for each (Bonferroni).

It became slower or faster where the interval leaves out 1 and the change is above 5 %. Measured with 5 runs a side, 10
series, a drift of up to 2 %, 1,000 trials: a series slower by 10 % was found in 100, 99 and 34 % of trials where noise
is 1, 2 and 4 %, and in 96 % where it is 2 % and every fifth series of a file has a run disturbed by 20 %. Any of the
nine that did not change was flagged in 0, 0.1, 0.6 and 0.6 % of trials; in 4 % where a quarter of them has noise of 4 %
and the rest 1 %, in 8 % where there are 100 series. At noise of 4 % ten runs find 95 %.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from benchmarks import schema
from benchmarks.schema import Results, Throughput
from benchmarks.statistics import CONFIDENCE, percentile, student_quantile
from utils.errors import UserError
from utils.progress import say

MIN_CHANGE = math.log(1.05)
MAX_DRIFT = math.log(1.02)
MIN_SERIES = 4  # fewer say nothing about what is common to them
MIN_RUNS = 3
SPREAD = 0.9539  # median distance of two normal draws, in standard deviations
EFFICIENCY = 1.024  # the change's standard error to that of a difference of means, sqrt(pi / 3)
SLOWER, FASTER, SAME, TOO_FEW = "slower", "faster", "-", "too few runs"
SETTINGS = (
    "model",
    "resolutions",
    "dtype",
    "prompt",
    "guidance_scale",
    "steps",
    "scheduler_label",
    "batch_size",
    "threads",
)


@dataclass(frozen=True)
class Change:
    """One series in both files: median seconds, ``ratio`` of new to old less the machine's ``drift``, verdict.

    ``drift`` is a ratio too. ``interval`` holds the ratio, with 95 % confidence for all series at once; it is None
    where there are too few runs to tell.
    """

    name: str
    old: float
    new: float
    ratio: float
    interval: tuple[float, float] | None
    verdict: str
    drift: float = 1.0


@dataclass(frozen=True)
class _Measured:
    """Logarithms: the change, the standard deviation of a run. ``runs`` are those of the old and of the new file."""

    change: float
    noise: float
    runs: tuple[int, int]


def changes(old: Results, new: Results) -> list[Change]:
    """Compare every series that both files have, in the order of the old one.

    Raises:
        UserError: the settings differ, no series is in both, or a run is not above 0 s.
    """
    _check_settings(old, new)
    before, after = _series(old), _series(new)
    both = [name for name in before if name in after]
    if not both:
        raise UserError("the files have no series of runs in common; make both with the same flags")
    enough = [name for name in both if min(len(before[name]), len(after[name])) >= MIN_RUNS]
    measured = {name: _measure(before[name], after[name]) for name in enough}
    judged = _judge(measured)
    return [_change(name, before[name], after[name], judged.get(name)) for name in both]


def report(found: Sequence[Change]) -> str:
    """Return a table, a line for each series: slower ones first, the most so at the top."""
    few = sum(change.verdict == TOO_FEW for change in found)
    lines = [
        f"{len(found) - few} series compared; ratio: new / old, below 1 is faster; intervals: 95 % for all at once"
    ]
    drift = next((change.drift for change in found if change.verdict != TOO_FEW), 1.0)
    if abs(drift - 1) >= 5e-4:
        lines.append(f"taken off the ratios: {drift - 1:+.1%}, the median of all, 2 % at most, as the machine's drift")
    if few:
        lines.append(f"{few} series can't be judged with fewer than {MIN_RUNS} runs in a file; measure with --runs 5")
    order = [SLOWER, SAME, FASTER, TOO_FEW]
    rows = [("", "old", "new", "ratio", "interval", "")]
    rows += [_row(each) for each in sorted(found, key=lambda each: (order.index(each.verdict), -each.ratio))]
    width = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for name, *figures, interval, verdict in rows:
        right = "  ".join(f"{text:>{n}}" for text, n in zip(figures, width[1:], strict=False))
        lines.append(f"{name:{width[0]}}  {right}  {interval:{width[4]}}  {verdict}".rstrip())
    return "\n".join(lines)


def compare_files(old: Path, new: Path) -> int:
    """Print what changed between two files. Return the exit code: 1 where anything became slower, else 0.

    Raises:
        UserError: a file can't be read, or the two can't be compared.
    """
    before, after = schema.read(old), schema.read(new)
    found = changes(before, after)
    if before.environment.cpu != after.environment.cpu:
        say(f"warning: not the same CPU: {before.environment.cpu}, then {after.environment.cpu}")
    for path, here, there in ((old, before, after), (new, after, before)):
        alone = [name for name in _series(here) if name not in _series(there)]
        if alone:
            say(f"only in {path}: {', '.join(alone)}")
    say(report(found))
    return int(any(change.verdict == SLOWER for change in found))


def _check_settings(old: Results, new: Results) -> None:
    both = [{**results.settings, "threads": results.environment.threads} for results in (old, new)]
    differing = [
        f"{name} ({both[0].get(name)}, then {both[1].get(name)})"
        for name in SETTINGS
        if both[0].get(name) != both[1].get(name)
    ]
    if differing:
        raise UserError(f"the files differ in {', '.join(differing)}; compare runs of the same settings")


def _series(results: Results) -> dict[str, list[float]]:
    """Return the seconds of each series that has any, by name.

    Raises:
        UserError: a run is not above 0 s.
    """
    found = {name: seconds for name, seconds in _all_series(results) if seconds}
    for name, seconds in found.items():
        for value in seconds:
            if not 0 < value < math.inf:
                raise UserError(f"{name} has a run of {value} s; {schema.ADVICE}")
    return found


def _all_series(results: Results) -> Iterator[tuple[str, list[float]]]:
    for backend in results.backends:
        for part in ("total", "text", "unet", "vae"):
            yield f"{backend.name} {backend.resolution} {part}", getattr(backend, f"{part}_seconds")
    for rung in results.ladder:
        yield f"ladder {rung.name}", rung.unet_seconds
    for attention in results.attention:
        yield f"attention {attention.layer} {attention.method}", attention.seconds
    for convolution in results.winograd:
        yield f"winograd {convolution.layer} {convolution.method}", convolution.seconds
    for throughput in results.throughput:
        yield f"throughput {throughput.name} {throughput.resolution}, a step", _step_costs(throughput)
    for latency in results.latency:
        yield f"latency {latency.name} {latency.resolution}", latency.seconds
    for tome in results.tome_sweep:
        name = f"tome {tome.name} {tome.resolution} {tome.ratio:g} {tome.attention}"
        yield from ((f"{name} total", tome.total_seconds), (f"{name} unet", tome.unet_seconds))


def _step_costs(throughput: Throughput) -> list[float]:
    """Return independent slopes between pictures half the list apart (Theil 1950), less negative ones."""
    points = sorted(zip(throughput.steps, throughput.seconds, strict=False))
    pairs = zip(points, points[(len(points) + 1) // 2 :], strict=False)
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs if b[0] > a[0]]
    return [slope for slope in slopes if not slope <= 0]


def _measure(old: Sequence[float], new: Sequence[float]) -> _Measured:
    before, after = [math.log(value) for value in old], [math.log(value) for value in new]
    change = statistics.median(b - a for a in before for b in after)
    distances = [abs(a - b) for runs in (before, after) for a, b in combinations(runs, 2)]
    return _Measured(change, statistics.median(distances) / SPREAD, (len(old), len(new)))


def _judge(measured: dict[str, _Measured]) -> dict[str, tuple[float, float, float]]:
    """Return change, half the width of its interval, and drift of each series, all logarithms."""
    drift, common, many = 0.0, 0.0, len(measured) >= MIN_SERIES
    if many:
        middle = statistics.median(each.change for each in measured.values())
        drift = max(-MAX_DRIFT, min(MAX_DRIFT, middle))
        common = percentile([each.noise for each in measured.values()], 75)
    judged = {}
    for name, each in measured.items():
        noise = math.sqrt((each.noise**2 + common**2) / 2) if many else each.noise
        freedom = (sum(each.runs) - 2) * (3 if many else 2) // 2
        quantile = student_quantile(1 - (1 - CONFIDENCE) / 2 / len(measured), freedom)
        half = quantile * noise * EFFICIENCY * math.sqrt(sum(1 / count for count in each.runs))
        judged[name] = (each.change - drift, half, drift)
    return judged


def _change(name: str, old: Sequence[float], new: Sequence[float], judged: tuple[float, float, float] | None) -> Change:
    before, after = statistics.median(old), statistics.median(new)
    found = Change(name, before, after, after / before, None, TOO_FEW)
    if judged is None:
        return found
    change, half, drift = judged
    verdict = SAME
    if abs(change) > max(half, MIN_CHANGE):
        verdict = SLOWER if change > 0 else FASTER
    interval = (math.exp(change - half), math.exp(change + half))
    return replace(found, ratio=math.exp(change), interval=interval, verdict=verdict, drift=math.exp(drift))


def _row(change: Change) -> tuple[str, str, str, str, str, str]:
    interval = "" if change.interval is None else f"{change.interval[0]:.3f}-{change.interval[1]:.3f}"
    return change.name, _time(change.old), _time(change.new), f"{change.ratio:.3f}", interval, change.verdict


def _time(seconds: float) -> str:
    """Format with four digits, as ratios need: ``12.34 s``, ``1.234 ms``."""
    if seconds < 0.99995:  # what rounds up takes the next unit
        return f"{seconds * 1e3:#.4g} ms"
    return f"{seconds:#.4g} s" if seconds < 999.95 else f"{seconds:.0f} s"
