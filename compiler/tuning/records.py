"""Tuning records on disk, one folder a kind of machine: what was measured of the kernels' tilings, and the best of it.

    scheduler_db/<kind>/  database_workload.json       a line a task: structural hash, plain TensorIR of the operator
                          database_tuning_record.json  a line a measurement: the task's line, trace, seconds, target
                          info.json                    kind of machine, device, versions, dates, minutes

The files are those of MetaSchedule's JSONDatabase. A kernel made by the builder has no blocks to schedule, so a trace
annotates the plain workload's root with what was chosen; the workload's attributes name the kernel and its arguments.
"""

from __future__ import annotations

import errno
import json
import math
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import tvm
from tvm.s_tir.meta_schedule.arg_info import ArgInfo
from tvm.s_tir.meta_schedule.database import TuningRecord, Workload

from compiler.kernels.plan import Plan
from compiler.kernels.tiling import choices
from compiler.kernels.tunable import TUNABLE, encode
from compiler.target import Cpu
from compiler.tuning.kind import INFO, Kind, kind_here
from utils.cpu import cpu_name
from utils.errors import UserError

WORKLOADS, RECORDS = "database_workload.json", "database_tuning_record.json"
NAME, ARGUMENTS, VERSION = "tvmerge.kernel", "tvmerge.arguments", "tvmerge.version"  # attributes of a workload
CHOSEN = "tvmerge.tiling."  # annotation of its root, with the name of what was chosen
MARGIN = 0.02  # by which a record must beat the kernel as it is to be used: less may be noise
FAILED = 1e10  # seconds of a candidate that crashed, hung or gave no numbers: MetaSchedule's own mark
SET_ASIDE = ".damaged"
UNREADABLE = (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError)  # what a damaged line raises

Key = tuple[str, str]  # a kernel's name and arguments
Chosen = dict[str, int]


@dataclass
class Info:
    """Where and with what records were measured. Minutes add up over the runs of the tuner."""

    kind: Kind
    device: str
    tvm: str
    begun: str = ""
    updated: str = ""
    minutes: float = 0.0


def kind_of(cpu: Cpu) -> Kind:
    """Return the kind of this machine when it runs code for ``cpu``; its name is that of the records' folder."""
    return kind_here(cpu.features, cpu.machine.cores)


def info_of(cpu: Cpu) -> Info:
    """Return what records that are measured now would be."""
    return Info(kind_of(cpu), cpu_name(), tvm.__version__)


@dataclass
class Records:
    """The records of a kind of machine that can be read; how many lines can, can't, or are of kernels since changed.

    ``seconds`` has all measurements of what was chosen of a task, ``order`` the median of each as they were made; an
    empty choice is the kernel as it is.
    """

    workloads: dict[int, Key] = field(default_factory=dict)
    seconds: dict[Key, dict[tuple[tuple[str, int], ...], list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    order: dict[Key, list[tuple[tuple[tuple[str, int], ...], float]]] = field(default_factory=lambda: defaultdict(list))
    measurements: int = 0
    damaged: int = 0
    outdated: int = 0

    def __len__(self) -> int:
        return self.measurements

    def add(self, key: Key, chosen: Mapping[str, int], seconds: list[float]) -> None:
        """Note one more measurement."""
        choice = tuple(sorted(chosen.items()))
        self.seconds[key][choice].extend(seconds)
        self.order[key].append((choice, statistics.median(seconds)))
        self.measurements += 1

    def time(self, key: Key, chosen: Mapping[str, int]) -> float | None:
        """Return the median seconds of a choice, ``FAILED`` or more where it failed, or None if it was never tried."""
        times = self.seconds.get(key, {}).get(tuple(sorted(chosen.items())))
        return statistics.median(times) if times else None

    def best(self, key: Key) -> tuple[Chosen, float] | None:
        """Return the fastest choice of a task that neither failed nor was refuted, and its seconds.

        Refuted is what was not faster when the kernel as it is had been timed just before: other measurements may be
        of a time when the machine was slower.
        """
        refuted = {
            chosen
            for (before, own), (chosen, seconds) in pairwise(self.order.get(key, []))
            if chosen and not before and seconds >= own * (1 - MARGIN)
        }
        tried = self.seconds.get(key, {})
        found = {chosen: statistics.median(times) for chosen, times in tried.items() if chosen not in refuted}
        fastest = min(found, key=lambda chosen: found[chosen], default=None)
        return None if fastest is None or found[fastest] >= FAILED else (dict(fastest), found[fastest])

    def gains(self, key: Key) -> bool:
        """Tell whether the best of a task beats the kernel as it is, by more than what may be noise."""
        best, own = self.best(key), self.time(key, {})
        return best is not None and own is not None and own < FAILED and best[1] < own * (1 - MARGIN)

    def choose(self, _function: str, plan: Plan, _call: object) -> Chosen:
        """Return what to choose of a kernel: nothing where no record beats the kernel as it is."""
        if plan.name not in TUNABLE or not self.seconds:
            return {}
        key = (plan.name, encode(plan.arguments))
        best = self.best(key)
        return best[0] if best is not None and self.gains(key) else {}


def _workload(line: str) -> tuple[Key, int]:
    """Return a workload's task, and the version of the kernel that was measured."""
    attributes = Workload.from_json(json.loads(line)).mod["main"].attrs
    return (str(attributes[NAME]), str(attributes[ARGUMENTS])), int(attributes.get(VERSION, 1))


def measured(line: str) -> tuple[int, Chosen, list[float]]:
    """Return the number of a record's task, what was chosen and its seconds.

    Raises:
        UNREADABLE: the line is no record.
    """
    index, (trace, seconds, _target, _arguments) = json.loads(line)
    chosen = {}
    for kind, inputs, attributes, _outputs in trace[0]:
        if kind == "Annotate" and str(attributes[0]).startswith(CHOSEN):
            chosen[attributes[0].removeprefix(CHOSEN)] = int(inputs[1])
    if not seconds or not all(isinstance(value, float) and 0 < value < math.inf for value in seconds):
        raise ValueError("no seconds")
    return int(index), chosen, seconds


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []


def read(folder: Path) -> Records:
    """Read what can be read of a folder of records; no folder is an empty one.

    Raises:
        UserError: it is a file, or can't be opened.
    """
    records = Records()
    try:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--database-dir: {folder} is a file, not a folder")
        workloads, lines = _lines(folder / WORKLOADS), _lines(folder / RECORDS)
    except OSError as error:
        raise UserError(f"--database-dir: {folder} can't be read: {error.strerror}") from None
    outdated = set()
    for index, line in enumerate(workloads):
        try:
            key, version = _workload(line)
            if version == TUNABLE[key[0]].version:
                records.workloads[index] = key
            else:
                outdated.add(index)
        except Exception:  # whatever TVM makes of a line that is none of its own
            records.damaged += 1
    for line in lines:
        try:
            index, chosen, seconds = measured(line)
            if index in outdated:
                records.outdated += 1
                continue
            name, arguments = records.workloads[index]
            known = choices(TUNABLE[name].tiling)
            if all(value in known.get(field, ()) for field, value in chosen.items()):
                records.add((name, arguments), chosen, seconds)
        except UNREADABLE:
            records.damaged += 1
    return records


def read_info(folder: Path) -> Info | None:
    """Return what a folder of records says of itself, or None where it says nothing that can be read."""
    try:
        values = json.loads((folder / INFO).read_text(encoding="utf-8"))
        return Info(**(values | {"kind": Kind.of(values["kind"])}))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _difference(found: Info | None, wanted: Info) -> str | None:
    """Return why records of ``found`` are not for ``wanted``, or None if they are."""
    if found is None:
        return f"{INFO} is missing or can't be read"
    if found.kind != wanted.kind:
        return f"they were measured on another kind of machine, {found.device} with {found.kind.cores} cores"
    if found.tvm.split(".")[:2] != wanted.tvm.split(".")[:2]:
        return f"they were measured with TVM {found.tvm}"
    return None


def usable(database: Path, cpu: Cpu) -> tuple[Records, str]:
    """Return the records of this kind of machine, and a line about them; nothing where there are none.

    Raises:
        UserError: see ``read``.
    """
    wanted = info_of(cpu)
    folder = database / wanted.kind.name
    if database.exists() and not database.is_dir():
        raise UserError(f"--database-dir {database} is a file, not a folder")
    if not (folder / RECORDS).is_file():
        return Records(), ""
    if (why := _difference(read_info(folder), wanted)) is not None:
        return Records(), f"records: those in {folder} are not used: {why}"
    records = read(folder)
    old = f", {records.outdated} of kernels that have changed since left out" if records.outdated else ""
    torn = f", {records.damaged} damaged lines left out" if records.damaged else ""
    return records, f"records: {len(records)} of {wanted.kind.name}{old}{torn}"


class Writer:
    """Adds to the records of a kind of machine, a line at a time. One process at a time: see ``compiler.lock``.

    Raises:
        UserError: the folder can't be made or written, or has records that were measured with something else.
    """

    def __init__(self, database: Path, cpu: Cpu, info: Info | None = None) -> None:
        self.info, self.cpu = info_of(cpu) if info is None else replace(info), cpu
        self.folder = database / self.info.kind.name
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--database-dir {self.folder} can't be written: {error.strerror}") from None
        if (self.folder / RECORDS).exists() and (why := _difference(read_info(self.folder), self.info)) is not None:
            raise UserError(f"--database-dir {self.folder}: {why}; name another folder, or remove this one")
        for name in (WORKLOADS, RECORDS):
            self._set_torn_line_aside(self.folder / name)
        self.records = read(self.folder)
        self.tasks = {key: index for index, key in self.records.workloads.items()}
        self.lines = len(_lines(self.folder / WORKLOADS))
        self._write_info(0.0)

    def commit(self, key: Key, workload: tvm.IRModule, chosen: Chosen, seconds: list[float]) -> None:
        """Add a measurement; it is on disk when this returns, or not at all."""
        saved = Workload(workload)
        if key not in self.tasks:
            _append(self.folder / WORKLOADS, json.dumps(saved.as_json()))
            self.tasks[key], self.lines = self.lines, self.lines + 1
        schedule = tvm.s_tir.Schedule(workload)
        root = schedule.get_sblock("root")
        for name, value in sorted(chosen.items()):
            schedule.annotate(root, CHOSEN + name, value)
        arguments = ArgInfo.from_prim_func(workload["main"])
        record = TuningRecord(schedule.trace, saved, seconds, self.cpu.target, arguments)
        _append(self.folder / RECORDS, json.dumps([self.tasks[key], record.as_json()]))
        self.records.add(key, chosen, seconds)

    def close(self, minutes: float) -> None:
        """Note how long was tuned."""
        self._write_info(minutes)

    def _write_info(self, minutes: float) -> None:
        now, before = time.strftime("%Y-%m-%d"), read_info(self.folder)
        self.info.begun, self.info.updated = before.begun if before else now, now
        self.info.minutes = round((before.minutes if before else 0.0) + minutes, 1)
        temporary = self.folder / f".{INFO}"
        temporary.write_text(json.dumps(asdict(self.info), indent=1) + "\n", encoding="utf-8")
        temporary.replace(self.folder / INFO)

    @staticmethod
    def _set_torn_line_aside(path: Path) -> None:
        """Move what a killed writer left of a line to a file of its own."""
        content = path.read_bytes() if path.exists() else b""
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            with path.with_name(path.name + SET_ASIDE).open("ab") as aside:
                aside.write(content[whole:] + b"\n")
            os.truncate(path, whole)
            print(f"{path}: the last line was cut short; it is in {path.name}{SET_ASIDE} now")


def _append(path: Path, line: str) -> None:
    """Add a line in one write; where that fails, as on a full disk, nothing of it stays."""
    data = line.encode() + b"\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        before = os.fstat(descriptor).st_size
        try:
            if os.write(descriptor, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            os.ftruncate(descriptor, before)
            raise UserError(f"--database-dir: {path} can't be written: {error.strerror}") from None
    finally:
        os.close(descriptor)
