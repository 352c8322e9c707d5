"""The database of tuning records: read past damage, written whole, used only where it belongs."""

import json
import multiprocessing
import os
import re
import signal
import time
from dataclasses import replace

import pytest
import tvm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_component import CPU
from tvm import relax
from tvm.s_tir.meta_schedule.database import JSONDatabase
from written_module import written

from compiler.database import DatabaseConfig, check, export, merge, prune
from compiler.kernels.group_norm import GroupNormShape, group_norm
from compiler.kernels.plan import Plan
from compiler.kernels.tunable import TUNABLE, encode
from compiler.tuning import kind
from compiler.tuning import records as module
from compiler.tuning.records import (
    FAILED,
    INFO,
    RECORDS,
    SET_ASIDE,
    WORKLOADS,
    Writer,
    kind_of,
    read,
    read_info,
    usable,
)
from compiler.tuning.tasks import workload
from utils.cpu import Caches
from utils.errors import UserError


def arguments_of(channels):
    return (GroupNormShape(1, 16, channels, 4, 1e-5), None, CPU.machine, ())


def task(channels=32):
    """Return key and workload of a GroupNorm."""

    def build(emit, x, gamma, beta):
        return emit(relax.op.nn.group_norm(x, gamma, beta, 4, 3, [1, 2]))

    function = written(build, (1, 4, 4, channels), (channels,), (channels,), weights=2)["main"]
    call = next(b.value for block in function.body.blocks for b in block.bindings if isinstance(b.value, relax.Call))
    key = ("group_norm", encode(arguments_of(channels)))
    return key, workload(call, key)


def plan_of(channels=32):
    return Plan("group_norm", group_norm, arguments_of(channels), lambda _builder: [], [])


TASKS = [task(channels) for channels in (32, 48, 64)]
KEY, WORKLOAD = TASKS[0]


@pytest.fixture
def database(tmp_path):
    """A database with three tasks of which the first two are faster otherwise."""
    writer = Writer(tmp_path / "db", CPU)
    for key, plain in TASKS:
        writer.commit(key, plain, {}, [0.004, 0.005, 0.003])
    writer.commit(*TASKS[0], {"stripes": 8}, [0.001])
    writer.commit(*TASKS[0], {"stripes": 8, "together": 2}, [0.002])
    writer.commit(*TASKS[1], {"together": 8}, [0.0035])
    writer.commit(*TASKS[2], {"stripes": 1}, [FAILED])
    writer.close(1.5)
    return tmp_path / "db"


def folder_of(database):
    return database / kind_of(CPU).name


class TestReading:
    def test_the_best_and_what_it_replaces(self, database):
        records = read(folder_of(database))
        assert len(records) == 7 and records.damaged == 0
        assert records.best(KEY) == ({"stripes": 8}, 0.001) and records.time(KEY, {}) == 0.004
        assert [records.choose("main", plan_of(channels), None) for channels in (32, 48, 64, 96)] == [
            {"stripes": 8},
            {"together": 8},
            {},
            {},
        ]
        assert records.best(TASKS[2][0]) == ({}, 0.004), "a candidate that failed is never the best"

    def test_a_slower_choice_is_not_used(self, tmp_path):
        writer = Writer(tmp_path, CPU)
        writer.commit(KEY, WORKLOAD, {}, [0.002])
        writer.commit(KEY, WORKLOAD, {"stripes": 8}, [0.003])
        assert read(folder_of(tmp_path)).choose("main", plan_of(), None) == {}

    @pytest.mark.parametrize(("seconds", "used"), [(0.00197, {}), (0.00195, {"stripes": 8})])
    def test_a_gain_that_may_be_noise_is_not_used(self, tmp_path, seconds, used):
        writer = Writer(tmp_path, CPU)
        writer.commit(KEY, WORKLOAD, {}, [0.002])
        writer.commit(KEY, WORKLOAD, {"stripes": 8}, [seconds])
        assert read(folder_of(tmp_path)).choose("main", plan_of(), None) == used

    def test_what_beats_a_kernel_that_failed_is_not_used(self, tmp_path):
        """There is nothing to compare with."""
        writer = Writer(tmp_path, CPU)
        writer.commit(KEY, WORKLOAD, {}, [FAILED])
        writer.commit(KEY, WORKLOAD, {"stripes": 8}, [0.003])
        assert read(folder_of(tmp_path)).choose("main", plan_of(), None) == {}

    def test_records_of_a_kernel_that_has_changed_are_not_used(self, database, monkeypatch):
        """They are counted, and what is measured of the new version is added beside them."""
        now = replace(TUNABLE["group_norm"], version=TUNABLE["group_norm"].version + 1)
        monkeypatch.setitem(TUNABLE, "group_norm", now)
        records, line = usable(database, CPU)
        assert records.choose("main", plan_of(), None) == {} and records.damaged == 0 and records.outdated == 7
        assert line.startswith("records: 0 of ") and "7 of kernels that have changed since left out" in line
        writer = Writer(database, CPU)
        key, plain = task()
        writer.commit(key, plain, {}, [0.004])
        writer.commit(key, plain, {"stripes": 2}, [0.001])
        assert read(folder_of(database)).choose("main", plan_of(), None) == {"stripes": 2}
        prune(DatabaseConfig(database_dir=database))
        assert read(folder_of(database)).outdated == 0 and len(read(folder_of(database))) == 2

    def test_pruned(self, database):
        """The best and the kernel as it is stay, with all that was measured of them; damage and others go."""
        path = folder_of(database) / RECORDS
        path.write_text(path.read_text() + "damaged\n")
        before = read(folder_of(database))
        prune(DatabaseConfig(database_dir=database))
        after = read(folder_of(database))
        assert len(after) == 5 and before.damaged == 1 and after.damaged == 0
        for key, _ in TASKS:
            assert after.best(key) == before.best(key) and after.time(key, {}) == before.time(key, {})

    def test_tvm_reads_it_too(self, database):
        """The files are MetaSchedule's: its own database finds the fastest record of a workload."""
        theirs = JSONDatabase(work_dir=str(folder_of(database)))
        assert len(theirs) == 7 and theirs.has_workload(WORKLOAD)
        (best,) = theirs.get_top_k(theirs.commit_workload(WORKLOAD), 1)
        assert [float(value) for value in best.run_secs] == [0.001]
        assert theirs.query_schedule(WORKLOAD, CPU.target, "main") is not None

    @settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        line=st.one_of(
            st.text(max_size=60),
            st.recursive(st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=5)), st.lists).map(
                json.dumps
            ),
            st.sampled_from(
                [
                    b"\xff\xfe",
                    b"[0,[[[],[]],[0.1],{},[]]]",
                    b'[0,[[[["Annotate",["b0","x"],["tvmerge.tiling.stripes"],[]]],[]],[1.0],{},[]]]',
                ]
            ),
        ),
        name=st.sampled_from([WORKLOADS, RECORDS]),
        where=st.integers(0, 8),
    )
    def test_garbage_lines(self, database, line, name, where):
        """What can't be read is left out and the rest is used; a workload's line keeps its number."""
        path = folder_of(database) / name
        before = path.read_bytes()
        lines = before.splitlines(keepends=True)
        garbage = (
            (line if isinstance(line, bytes) else line.encode("utf-8", "replace"))
            .replace(b"\n", b" ")
            .replace(b"\r", b" ")
        )
        lines.insert(min(where, len(lines)) if name == RECORDS else len(lines), garbage + b"\n")
        path.write_bytes(b"".join(lines))
        try:
            assert read(folder_of(database)).choose("main", plan_of(), None) == {"stripes": 8}
        finally:
            path.write_bytes(before)

    @pytest.mark.parametrize("name", [WORKLOADS, RECORDS])
    def test_cut_short_anywhere(self, database, name):
        path = folder_of(database) / name
        content = path.read_bytes()
        for length in range(0, len(content), max(1, len(content) // 23)):
            path.write_bytes(content[:length])
            found = read(folder_of(database))
            assert len(found) + found.damaged <= 20

    def test_an_altered_workload_is_left_out_with_its_records(self, database):
        path = folder_of(database) / WORKLOADS
        first, rest = path.read_text().split("\n", 1)
        path.write_text(first[: len(first) // 2] + "\n" + rest)
        records = read(folder_of(database))
        assert records.choose("main", plan_of(32), None) == {} and records.damaged == 4
        assert records.choose("main", plan_of(48), None) == {"together": 8}


class TestWriting:
    def test_a_torn_last_line_is_set_aside(self, database, capsys):
        path = folder_of(database) / RECORDS
        path.write_bytes(path.read_bytes()[:-20])
        Writer(database, CPU).commit(KEY, WORKLOAD, {"stripes": 2}, [0.0005])
        assert f"{RECORDS}{SET_ASIDE}" in capsys.readouterr().out
        assert path.with_name(RECORDS + SET_ASIDE).read_text().startswith("[2,")
        records = read(folder_of(database))
        assert records.damaged == 0 and records.choose("main", plan_of(), None) == {"stripes": 2}

    def test_a_full_disk_leaves_no_part_of_a_line(self, database, monkeypatch):
        path = folder_of(database) / RECORDS
        before = path.read_bytes()
        write = os.write
        monkeypatch.setattr(module.os, "write", lambda descriptor, data: write(descriptor, data[:40]))
        with pytest.raises(UserError, match=r"--database-dir: .*record.json can't be written: No space"):
            Writer(database, CPU).commit(KEY, WORKLOAD, {"stripes": 2}, [0.0005])
        assert path.read_bytes() == before

    def test_minutes_add_up(self, database):
        Writer(database, CPU).close(2.25)
        info = read_info(folder_of(database))
        assert info.minutes == 3.8 and info.kind == kind_of(CPU)

    def test_killed_at_any_moment(self, tmp_path):
        """SIGKILL while records are written: none is lost but the one in flight, and the next writer goes on."""
        context = multiprocessing.get_context("fork")
        for attempt in range(10):
            pipe, child = context.Pipe()

            def work(child=child):
                writer = Writer(tmp_path, CPU)
                for number in range(10_000):
                    writer.commit(*TASKS[number % 3], {"stripes": 8}, [0.001 + number * 1e-9])
                    child.send(number)

            process = context.Process(target=work)
            before = len(read(folder_of(tmp_path)))
            process.start()
            pipe.recv()
            time.sleep(0.003 * attempt)
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            told = 1
            while pipe.poll():
                pipe.recv()
                told += 1
            found = read(folder_of(tmp_path))
            assert told <= len(found) - before <= told + 1 and found.damaged <= 1


class TestUse:
    def test_the_line_is_short_and_only_where_there_are_records(self, database):
        (database / "another").mkdir()
        records, line = usable(database, CPU)
        assert len(records) == 7 and line == f"records: 7 of {kind_of(CPU).name}"

    @pytest.mark.parametrize("machine", [{"cores": 99}, {"lanes": 3}])
    def test_other_machines_are_not_used_and_not_talked_of(self, database, monkeypatch, machine):
        """Other cores; other instruction sets, under the same name of LLVM's."""
        other = replace(CPU, machine=replace(CPU.machine, **machine))
        if "lanes" in machine:
            sets = "-avx" if "avx" in CPU.features else "-neon"
            options = {"kind": "llvm", "mcpu": CPU.target.attrs["mcpu"], "mattr": [sets]}
            other = replace(other, target=type(CPU.target)(options))
        records, line = usable(database, other)
        assert len(records) == 0 and line == ""

    def test_other_caches_are_another_kind(self, database, monkeypatch):
        monkeypatch.setattr(kind, "cache_sizes", lambda: Caches(l2=123 << 20))
        assert usable(database, CPU)[1] == ""

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            ({"kind": {"sets": ["avx"]}}, "another kind of machine"),
            ({"kind": {"cores": 99}}, "another kind of machine.*99 cores"),
            ({"kind": {"l2": 1}}, "another kind of machine"),
            ({"kind": {"l2": "1", "l9": 2}}, "missing"),
            ({"tvm": "0.9.1"}, "TVM 0.9.1"),
            (None, "missing"),
        ],
    )
    def test_other_conditions_are_not_used_and_not_added_to(self, database, change, why):
        """What is added would pass off the rest as measured like it."""
        path = folder_of(database) / INFO
        info = json.loads(path.read_text())
        changed = info | (change or {}) | {"kind": info["kind"] | (change or {}).get("kind", {})}
        path.write_text("{" if change is None else json.dumps(changed))
        records, line = usable(database, CPU)
        assert len(records) == 0 and re.search(f"are not used: .*{why}", line)
        before = path.read_text()
        with pytest.raises(UserError, match=f"--database-dir .*{why}.*another folder"):
            Writer(database, CPU)
        assert path.read_text() == before

    def test_missing_is_empty_and_a_file_is_refused(self, tmp_path):
        assert usable(tmp_path / "nowhere", CPU)[1] == ""
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="--database-dir"):
            usable(tmp_path / "file", CPU)
        with pytest.raises(UserError, match="--database-dir"):
            Writer(tmp_path / "file", CPU)


class TestHandedOn:
    def test_all_tasks_or_those_that_gain(self, database, tmp_path):
        for name, gains_only, keys in (("all", False, TASKS), ("gains", True, TASKS[:2])):
            (tmp_path / name).mkdir()
            merge(DatabaseConfig(database_dir=tmp_path / name, source=database, gains_only=gains_only))
            taken, before = read(folder_of(tmp_path / name)), read(folder_of(database))
            assert set(taken.seconds) == {key for key, _ in keys}
            assert all(taken.best(key) == before.best(key) and taken.time(key, {}) == 0.004 for key, _ in keys)
            assert read_info(folder_of(tmp_path / name)).minutes == 1.5

    def test_gains_are_taken_over_not_seconds(self, database, tmp_path):
        """The other machine was twice as fast that day; what was measured here stays, and nothing is taken twice."""
        writer = Writer(tmp_path, CPU)
        writer.commit(*TASKS[0], {}, [0.008])
        writer.commit(*TASKS[1], {}, [0.008])
        writer.commit(*TASKS[1], {"together": 8}, [0.009])
        for _ in range(2):
            merge(DatabaseConfig(database_dir=tmp_path, source=database))
            found = read(folder_of(tmp_path))
            assert found.time(TASKS[0][0], {}) == 0.008 and found.best(TASKS[0][0]) == ({"stripes": 8}, 0.002)
            assert found.time(TASKS[1][0], {"together": 8}) == 0.009 and found.time(TASKS[2][0], {}) == 0.004
            assert read_info(folder_of(tmp_path)).minutes == 1.5

    def test_what_can_not_be_computed_is_named(self, tmp_path, capsys):
        name, arguments = KEY
        key = (name, arguments.replace("GroupNormShape", "Unknown"))
        writer = Writer(tmp_path, CPU)
        writer.commit(key, tvm.IRModule({"main": WORKLOAD["main"].with_attr(module.ARGUMENTS, key[1])}), {}, [0.004])
        with pytest.raises(UserError, match="1 of 1 tasks compute a wrong result: group_norm"):
            check(DatabaseConfig(database_dir=tmp_path))
        assert "KeyError" in capsys.readouterr().out

    def test_export_into_no_folder(self, database, tmp_path):
        with pytest.raises(UserError, match="--json"):
            export(DatabaseConfig(database_dir=database, json=tmp_path / "none" / "x.json"))

    def test_records_of_another_cpu_are_not_checked(self, database, capsys):
        path = folder_of(database) / INFO
        path.write_text(path.read_text().replace('"cores": ', '"cores": 9'))
        check(DatabaseConfig(database_dir=database))
        assert "left out, this is another kind of machine" in capsys.readouterr().out
