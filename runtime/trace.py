"""Recordings as Chrome's Trace Event format, which Perfetto (https://ui.perfetto.dev) and chrome://tracing open.

A side is a process, a component a thread of it; phases enclose the calls of a component, these enclose its kernels.
Source: "Trace Event Format", Google, complete events (X) and metadata (M); times in microseconds from the first event.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from runtime.recording import Call, Phase, Recording
from utils.errors import UserError
from utils.files import write_whole

Event = dict[str, Any]
EVENTS = "traceEvents"
PID = 1


def events(recording: Recording) -> list[Event]:
    """Return the metadata, then all events in the order in which they began, what encloses another before it."""
    threads = {component: number for number, component in enumerate(recording.components, 1)}
    spans = list(_spans(recording))
    origin = min((start for _, _, _, start, _ in spans), default=0.0)
    found: list[Event] = []
    for category, component, name, start, end in spans:
        begin, stop = (round((moment - origin) * 1e9) for moment in (start, end))  # whole, so that nothing sticks out
        found.append(
            {
                "ph": "X",
                "cat": category,
                "name": name,
                "ts": begin / 1000,
                "dur": (stop - begin) / 1000,
                "pid": PID,
                "tid": threads[component],
            }
        )
    found.sort(key=lambda event: (event["ts"], -event["dur"]))
    return [*_names(recording.side, threads), *found]


def _names(side: str, threads: dict[str, int]) -> Iterator[Event]:
    yield {"ph": "M", "name": "process_name", "ts": 0, "pid": PID, "tid": 0, "args": {"name": side}}
    for component, tid in threads.items():
        yield {"ph": "M", "name": "thread_name", "ts": 0, "pid": PID, "tid": tid, "args": {"name": component}}


def _spans(recording: Recording) -> Iterator[tuple[str, str, str, float, float]]:
    """Yield category, component, name, start and end. A phase is on the thread of every component that it called."""
    for phase in recording.phases:
        for component in dict.fromkeys(call.component for call in within(recording.calls, phase)):
            yield "phase", component, phase.name, phase.start, phase.end
    for call in recording.calls:
        yield "call", call.component, call.function, call.start, call.end
    for kernel in recording.kernels:
        origin = recording.entries[kernel.component, kernel.name].origin
        yield origin or "no kernel", kernel.component, kernel.name, kernel.start, kernel.end


def within(calls: Sequence[Call], phase: Phase) -> Sequence[Call]:
    """Return the calls that a phase made, of ``calls`` in their order."""
    first, end = (bisect.bisect_left(calls, moment, key=lambda call: call.start) for moment in (phase.start, phase.end))
    return calls[first:end]


def write_trace(found: Sequence[Event], target: Path, left_out: int = 0) -> None:
    """Write events as a trace; ``left_out`` tells how many kernel calls it lacks."""
    trace = {"displayTimeUnit": "ms", "otherData": {"kernels_left_out": left_out}, EVENTS: found}
    write_whole(target, json.dumps(trace, allow_nan=False) + "\n")


def read_trace(path: Path) -> list[Event]:
    """Return the events of a trace.

    Raises:
        UserError: the file can't be read, or is no trace.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return [{**event, "pid": int(event["pid"])} for event in value[EVENTS]]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{path} is no trace ({type(error).__name__}: {error})") from None


def merge_traces(files: Sequence[Path], target: Path) -> None:
    """Write the traces of several runs as one, in which each process of each file is a process of its own.

    All begin at 0, so that they can be compared side by side.

    Raises:
        UserError: a file can't be read, or is no trace.
    """
    pids: dict[tuple[int, int], int] = {}
    merged = [
        {**event, "pid": pids.setdefault((number, event["pid"]), len(pids) + 1)}
        for number, path in enumerate(files)
        for event in read_trace(path)
    ]
    write_trace(merged, target)
