"""build.py --tune-trials: records are made, kept over a kill, used by the next build, and refused in one line."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from compiler.tuning.kind import Kind
from utils.config import ROOT


def tiny(folder, *flags):
    return (
        "build.py",
        "--model",
        "random:tiny",
        "--output-dir",
        folder / "out",
        "--database-dir",
        folder / "db",
        *flags,
    )


def records_in(folder):
    return [json.loads(line) for path in (folder / "db").glob("*/database_tuning_record.json") for line in path.open()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, good_script):
    """A database and an artifact that was built with it, after four trials."""
    folder = tmp_path_factory.mktemp("tuning")
    done = good_script(*tiny(folder, "--tune-trials", 4))
    assert "tuned: 4 trials in" in done.stdout and re.search(r"records: 4 of \S+-cores-", done.stdout)
    return folder


def test_records_and_what_they_say_of_themselves(folder):
    (path,) = (folder / "db").glob("*/info.json")
    info = json.loads(path.read_text())
    assert path.parent.name == Kind.of(info["kind"]).name
    assert info["kind"]["cores"] >= 1 and info["tvm"] and info["minutes"] > 0 and info["device"]
    assert len(records_in(folder)) == 4


def test_a_record_rebuilds_and_none_does_not(folder, good_script):
    assert "is up to date" in good_script(*tiny(folder)).stdout
    (path,) = (folder / "db").glob("*/database_tuning_record.json")
    line = json.loads(path.read_text().splitlines()[0])
    line[1][0][0] = [["GetSBlock", [], ["root", "main"], ["b0"]], *_annotation(folder, line[0])]
    line[1][1] = [1e-9]
    with path.open("a") as stream:
        stream.write(json.dumps(line) + "\n")
    done = good_script(*tiny(folder))
    assert "records of --database-dir changed" in done.stdout and "by record" in done.stdout


def _annotation(folder, index):
    """Return the annotation that chooses the second value of the first field of a task's kernel."""
    from compiler.kernels.tiling import choices
    from compiler.kernels.tunable import TUNABLE
    from compiler.tuning.records import read

    (database,) = (path.parent for path in (folder / "db").glob("*/info.json"))
    name, _ = read(database).workloads[index]
    field, values = next(iter(choices(TUNABLE[name].tiling).items()))
    return [["Annotate", ["b0", values[1]], [f"tvmerge.tiling.{field}"], []]]


def test_commands_of_the_database(folder, good_script, tmp_path):
    flags = ("--database-dir", folder / "db")
    assert "tasks" in good_script("-m", "compiler.database", "status", *flags, "--artifacts-dir", folder / "out").stdout
    assert "agree with NumPy" in good_script("-m", "compiler.database", "check", *flags).stdout
    good_script("-m", "compiler.database", "export", *flags, "--json", tmp_path / "records.json")
    (target,) = json.loads((tmp_path / "records.json").read_text()).values()
    assert {task["kernel"] for task in target["tasks"]} and all(task["seconds"] for task in target["tasks"])
    (tmp_path / "db").mkdir()
    good_script("-m", "compiler.database", "merge", "--database-dir", tmp_path / "db", "--source", folder / "db")
    assert len(records_in(tmp_path)) >= 4
    good_script("-m", "compiler.database", "prune", "--database-dir", tmp_path / "db")
    assert len(records_in(tmp_path)) >= 4 and not list((tmp_path / "db").glob(".*"))


def test_killed_and_taken_up(tmp_path, good_script):
    command = [sys.executable, *map(str, tiny(tmp_path, "--tune-minutes", 5))]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    end = time.monotonic() + 120
    while len(records_in(tmp_path)) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = len(records_in(tmp_path))
    assert before >= 2
    done = good_script(*tiny(tmp_path, "--tune-trials", 1))
    assert "tuned: 1 trials" in done.stdout and len(records_in(tmp_path)) == before + 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--tune-minutes", -1), ("--tune-minutes", "from 0")),
        (("--tune-minutes", "nan"), ("--tune-minutes",)),
        (("--tune-trials", -1), ("--tune-trials", "from 0")),
        (("--tracker", "127.0.0.1:1"), ("--tracker", "--tune-minutes")),
        (("--tracker", "nowhere", "--tune-trials", 1), ("--tracker nowhere", "HOST:PORT")),
        (("--tracker", "127.0.0.1:1", "--tune-trials", 1), ("--tracker 127.0.0.1:1", "no tracker answers")),
    ],
)
def test_budgets_that_are_refused(tmp_path, script, flags, words):
    done = script(*tiny(tmp_path, *flags))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert all(word in done.stderr for word in words)


def test_a_database_that_is_a_file(tmp_path, script):
    (tmp_path / "db").write_text("")
    done = script(*tiny(tmp_path, "--tune-trials", 1))
    assert done.returncode == 2 and "--database-dir" in done.stderr and len(done.stderr.splitlines()) == 1


def test_two_tuners_at_once(folder, script):
    (info,) = (folder / "db").glob("*/info.json")
    path = info.parent.parent / f".{info.parent.name}.lock"
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.write("process 12345 on somewhere")
        stream.flush()
        done = script(*tiny(folder, "--tune-trials", 1))
    path.unlink()
    assert done.returncode == 2 and "process 12345 on somewhere tunes there" in done.stderr
