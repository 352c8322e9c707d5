"""Look after tuning records: what is there and what it is worth, and keep, join or hand on the best of it."""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tvm.s_tir.meta_schedule.database import Workload
from tvm.target import Target

from compiler.kernels.tunable import decode
from compiler.lock import locked
from compiler.target import Cpu, resolve_target
from compiler.tuning.records import (
    FAILED,
    RECORDS,
    SET_ASIDE,
    UNREADABLE,
    WORKLOADS,
    Chosen,
    Info,
    Key,
    Records,
    Writer,
    kind_of,
    measured,
    read,
    read_info,
)
from compiler.tuning.reference import agrees
from runtime.artifact import Artifact
from utils import units
from utils.command_line import flag, parse_command
from utils.errors import UserError, run_script
from utils.files import write_whole
from utils.progress import progress, say

COMMANDS = ("status", "merge", "prune", "check", "export")
EXAMPLES = """
  python -m compiler.database status                                what is there, and its gain
  python -m compiler.database status --artifacts-dir artifacts      and how much of an artifact's time records cover
  python -m compiler.database merge --source ../theirs/scheduler_db
  python -m compiler.database merge --source mine --database-dir scheduler_db --gains-only
  python -m compiler.database prune                                 keep the best of each task, and the kernel as it is
  python -m compiler.database check                                 compute the best of each task, against NumPy
  python -m compiler.database export --json records.json
"""


@dataclass(frozen=True)
class DatabaseConfig:
    """What ``python -m compiler.database`` works on."""

    database_dir: Path = flag(Path("scheduler_db"), "folder of tuning records, one folder a kind of machine")
    artifacts_dir: Path | None = flag(None, "status: also the coverage of this artifact")
    source: Path | None = flag(None, "merge: the other database")
    gains_only: bool = flag(False, "merge: only tasks that a record makes faster, as a database that is handed on")
    json: Path | None = flag(None, "export: file to write (default: standard output)", metavar="FILE")

    def __post_init__(self) -> None:
        for name, folder in (("--database-dir", self.database_dir), ("--source", self.source)):
            if folder is not None and not folder.is_dir():
                raise UserError(f"{name} {folder}: no such folder; build.py --tune-minutes makes one")


def _folders(database: Path) -> Iterator[tuple[Path, Info, Records]]:
    for folder in sorted(path for path in database.iterdir() if (path / RECORDS).is_file()):
        info = read_info(folder)
        if info is None:
            say(f"{folder.name}: left out, its info.json can't be read")
        else:
            yield folder, info, read(folder)


def _kept(records: Records, key: Key) -> list[tuple[Chosen, float]]:
    """Return the kernel as it is and the best choice, with their seconds."""
    own, best = records.time(key, {}), records.best(key)
    found: list[tuple[Chosen, float]] = [] if own is None else [({}, own)]
    return found if best is None or not best[0] else [*found, best]


def status(config: DatabaseConfig) -> None:
    """Print what each folder has, and what the best is against the kernels as they are."""
    for folder, info, records in _folders(config.database_dir):
        old = f", {records.outdated} of kernels that have changed since" if records.outdated else ""
        damaged = f", {records.damaged} damaged lines" if records.damaged else ""
        print(
            f"{folder.name}: {len(records.seconds)} tasks, {len(records)} measurements{old}{damaged}; {info.device}, "
            f"{info.kind.cores} cores, TVM {info.tvm}, {info.begun} to {info.updated}, {info.minutes:.0f} minutes"
        )
        ratios = []
        for key in records.seconds:
            own, best = records.time(key, {}), records.best(key)
            if own is not None and best is not None:
                ratios.append(min(1.0, best[1] / own))
        if ratios:
            faster = sum(records.gains(key) for key in records.seconds)
            print(f"  {faster} tasks faster than the kernel as it is; best / as it is: {_spread(ratios)}")
    if config.artifacts_dir is not None:
        for name, component in Artifact(config.artifacts_dir).manifest.components.items():
            shares = {"record": 0.0, "kernel of ours": 0.0, "rule": 0.0}
            for origin, share in component.time_share.items():
                kind = "record" if origin.endswith(" by record") else origin
                shares[kind if kind in shares else "kernel of ours"] += share if origin != "other" else 0.0
            print(f"{name}: " + ", ".join(f"{kind} {share:.1%}" for kind, share in shares.items()))


def _spread(ratios: list[float]) -> str:
    return f"median {statistics.median(ratios):.3f}, from {min(ratios):.3f} to {max(ratios):.3f}"


def merge(config: DatabaseConfig) -> None:
    """Take over the best of each task of another database, and the kernel as it is; what was measured here stays."""
    if config.source is None:
        raise UserError("merge needs --source, the other database")
    for folder, info, records in _folders(config.source):
        own = config.database_dir / info.kind.name
        with locked("--database-dir", own, "tunes", "wait for it"):
            writer, taken = Writer(config.database_dir, _cpu_of(folder), info), 0
            modules = _modules(folder)
            for key in records.seconds:
                scale = _scale(writer.records.time(key, {}), records.time(key, {}))
                for chosen, seconds in _kept(records, key) if records.gains(key) or not config.gains_only else ():
                    if writer.records.time(key, chosen) is None:
                        writer.commit(key, modules[key].mod, chosen, [seconds * scale])
                        taken += 1
            writer.close(info.minutes if taken else 0.0)
        print(f"{info.kind.name}: {taken} measurements taken over")


def _scale(here: float | None, there: float | None) -> float:
    """Return how much longer the kernel as it is takes here, so that gains are taken over rather than seconds."""
    known = here is not None and there is not None and max(here, there) < FAILED
    return here / there if known and here and there else 1.0


def _cpu_of(folder: Path) -> Cpu:
    """Return the target that the records of a folder were measured for."""
    here = resolve_target("llvm")
    for line in (folder / RECORDS).read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError, IndexError):  # a damaged line
            return replace(here, target=Target(json.loads(line)[1][2]))
    return here


def _modules(folder: Path) -> dict[Key, Workload]:
    lines = (folder / WORKLOADS).read_text(encoding="utf-8", errors="replace").splitlines()
    return {key: Workload.from_json(json.loads(lines[index])) for index, key in read(folder).workloads.items()}


def prune(config: DatabaseConfig) -> None:
    """Keep what was measured of each task's best and of the kernel as it is; all else and damaged lines go.

    The file is replaced at one stroke, and tasks keep their numbers.
    """
    for folder, _, records in _folders(config.database_dir):
        with locked("--database-dir", folder, "tunes", "wait for it"):
            lines = (folder / RECORDS).read_text(encoding="utf-8", errors="replace").splitlines()
            kept = [line for line in lines if _is_worth_keeping(line, records)]
            temporary = folder / f".{RECORDS}"
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            temporary.replace(folder / RECORDS)
            (folder / f"{RECORDS}{SET_ASIDE}").unlink(missing_ok=True)
        print(f"{folder.name}: {len(kept)} of {len(lines)} measurements kept")


def _is_worth_keeping(line: str, records: Records) -> bool:
    try:
        index, chosen, _ = measured(line)
        return any(chosen == other for other, _ in _kept(records, records.workloads[index]))
    except UNREADABLE:
        return False


def check(config: DatabaseConfig) -> None:
    """Compute the best of each task and compare it with NumPy.

    Raises:
        UserError: a result is wrong; the task is named.
    """
    cpu: Cpu = resolve_target("llvm")
    for folder, info, records in _folders(config.database_dir):
        if info.kind != kind_of(cpu):
            say(f"{folder.name}: left out, this is another kind of machine")
            continue
        wrong = []
        for key in progress(list(records.seconds), folder.name):
            best = records.best(key)
            try:
                right = best is None or agrees(key[0], decode(key[1]), best[0], cpu.target)
            except Exception as error:  # whatever TVM makes of a record that it can't compile
                say(f"{key[0]}: {type(error).__name__}: {error}")
                right = False
            if not right:
                wrong.append(f"{key[0]} {key[1]} with {best[0] if best else {}}")
        if wrong:
            raise UserError(
                f"{folder}: {len(wrong)} of {len(records.seconds)} tasks compute a wrong result: {wrong[0]}"
            )
        print(f"{folder.name}: the best of {len(records.seconds)} tasks agree with NumPy")


def export(config: DatabaseConfig) -> None:
    """Write the best of each task as JSON."""
    targets = {
        folder.name: {
            "info": asdict(info),
            "tasks": [
                {
                    "kernel": name,
                    "arguments": json.loads(arguments),
                    "tiling": {} if best is None else best[0],
                    "seconds": None if best is None else best[1],
                    "seconds_as_it_is": records.time((name, arguments), {}),
                }
                for name, arguments in records.seconds
                for best in [records.best((name, arguments))]
            ],
        }
        for folder, info, records in _folders(config.database_dir)
    }
    text = json.dumps(targets, indent=1) + "\n"
    if config.json is None:
        sys.stdout.write(text)
    else:
        if not config.json.absolute().parent.is_dir() or config.json.is_dir():
            raise UserError(f"--json {config.json}: name a file in a folder that is there")
        write_whole(config.json, text)
        print(f"wrote {config.json} ({units.size(len(text))})")


def main(argv: list[str]) -> None:
    """Do what the first word says."""
    command, config = parse_command(DatabaseConfig, argv, COMMANDS, __doc__ or "", EXAMPLES)
    {"status": status, "merge": merge, "prune": prune, "check": check, "export": export}[command](config)


if __name__ == "__main__":
    run_script(main)
