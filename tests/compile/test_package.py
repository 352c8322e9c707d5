"""Saving: all or nothing, and parameters that can be mapped."""

import hashlib
import json
import os
import struct
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors import safe_open

from compiler import staging
from compiler.staging import staged
from runtime.parameters import ALIGNMENT, DTYPES, map_parameters, read_header, write_parameters
from utils.errors import UserError


def content(folder):
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


def fill(folder, text):
    (folder / "manifest.json").write_text(text)


@pytest.fixture
def target(tmp_path):
    """An artifact of an earlier build."""
    folder = tmp_path / "out" / "artifact"
    folder.mkdir(parents=True)
    fill(folder, "old")
    (folder / "only-in-the-old-one").write_text("")
    return folder


def test_a_build_that_ends_well_takes_the_place(target):
    with staged(target) as folder:
        assert folder.parent == target.parent  # one file system, so that the rename is one step
        fill(folder, "new")
        assert content(target)["manifest.json"] == "old"
    assert content(target) == {"manifest.json": "new"}
    assert os.listdir(target.parent) == ["artifact"]


def test_a_new_folder_and_its_parents_are_made(tmp_path):
    with staged(tmp_path / "a" / "b" / "c") as folder:
        fill(folder, "new")
    assert content(tmp_path / "a" / "b" / "c") == {"manifest.json": "new"}


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "empty").mkdir()
    with staged(tmp_path / "empty") as folder:
        fill(folder, "new")
    assert content(tmp_path / "empty") == {"manifest.json": "new"}


@pytest.mark.parametrize("error", [UserError("parity"), KeyboardInterrupt(), RuntimeError("a defect"), SystemExit(2)])
def test_a_build_that_fails_leaves_the_old_artifact(target, error):
    with pytest.raises(type(error)):
        with staged(target) as folder:
            fill(folder, "half")
            raise error
    assert content(target) == {"manifest.json": "old", "only-in-the-old-one": ""}
    assert os.listdir(target.parent) == ["artifact"]


@pytest.mark.parametrize("error", [UserError("parity"), KeyboardInterrupt()])
def test_a_first_build_that_fails_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)):
        with staged(tmp_path / "artifact") as folder:
            fill(folder, "half")
            raise error
    assert os.listdir(tmp_path) == []


def test_a_rename_that_fails_brings_the_old_artifact_back(target, monkeypatch):
    """Where the system can't exchange two folders at one stroke."""
    monkeypatch.setattr(staging, "_exchange", lambda one, other: False)
    rename = type(target).rename

    def refuse_new(self, destination):
        if ".partial" in self.name:
            raise OSError(28, "No space left on device")
        return rename(self, destination)

    monkeypatch.setattr(type(target), "rename", refuse_new)
    with pytest.raises(UserError, match="No space left"):
        with staged(target) as folder:
            fill(folder, "new")
    assert content(target)["manifest.json"] == "old" and os.listdir(target.parent) == ["artifact"]


def test_a_full_disk_is_told_in_one_line(target):
    with pytest.raises(UserError, match=r"--output-dir .*artifact: No space left on device"):
        with staged(target):
            raise OSError(28, "No space left on device")
    assert content(target)["manifest.json"] == "old"


def test_leftovers_of_killed_builds_are_removed_and_of_running_ones_kept(target):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    killed = [target.parent / f".artifact.{role}-{int(dead.stdout)}" for role in ("partial", "old")]
    running = target.parent / f".artifact.partial-{os.getppid()}"
    others = target.parent / f".artifact-two.partial-{int(dead.stdout)}"
    for folder in (*killed, running, others):
        folder.mkdir()
        fill(folder, "half")
    with staged(target) as folder:
        fill(folder, "new")
    assert not any(path.exists() for path in killed) and running.exists() and others.exists()


def test_the_old_artifact_of_a_build_killed_between_two_renames_comes_back(tmp_path):
    """Killed after the old one was moved aside: it is the only whole artifact, so the next build must not lose it."""
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    aside = tmp_path / f".artifact.old-{int(dead.stdout)}"
    aside.mkdir()
    fill(aside, "old")
    with pytest.raises(RuntimeError):
        with staged(tmp_path / "artifact"):
            raise RuntimeError
    assert content(tmp_path / "artifact") == {"manifest.json": "old"}


def test_a_foreign_folder_is_refused_and_untouched(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"--output-dir .*thesis is not empty"):
        with staged(tmp_path / "thesis"):
            raise AssertionError("must be refused before anything is built")
    assert content(tmp_path / "thesis") == {"chapter.txt": "years of work"} and os.listdir(tmp_path) == ["thesis"]


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "file").write_text("kept")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="--output-dir"):
            with staged(folder) as staging:
                fill(staging, "new")
    assert (tmp_path / "file").read_text() == "kept" and os.listdir(tmp_path) == ["file"]


DTYPE = st.sampled_from([dtype for dtype in DTYPES.values() if dtype != ml_dtypes.bfloat16])
ARRAY = DTYPE.flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=7))
)
NAMES = st.text(min_size=1, max_size=20).filter(
    lambda name: not name.startswith("_padding.") and name != "__metadata__"
)


def encodable(name):
    return name.encode("utf-8", "ignore").decode() == name


@settings(deadline=None)
@given(values=st.dictionaries(NAMES.filter(encodable), ARRAY, max_size=6))
def test_parameters_come_back_aligned_and_equal(tmp_path_factory, values):
    path = tmp_path_factory.getbasetemp() / "round-trip.safetensors"
    types = {name: (list(value.shape), str(value.dtype)) for name, value in values.items()}
    digest = write_parameters(path, types, iter(values.items()))
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    mapped = map_parameters(path)
    assert list(mapped) == list(values)
    for name, value in values.items():
        assert mapped[name].dtype == value.dtype and mapped[name].shape == value.shape
        assert mapped[name].tobytes() == value.tobytes()
        assert value.size == 0 or mapped[name].ctypes.data % ALIGNMENT == 0
    with safe_open(path, framework="np") as file:
        for name, value in values.items():
            assert file.get_tensor(name).tobytes() == value.tobytes()


def test_bfloat16_parameters(tmp_path):
    value = np.arange(7, dtype=np.float32).astype(ml_dtypes.bfloat16)
    write_parameters(tmp_path / "p", {"x": ([7], "bfloat16")}, [("x", value)])
    assert np.array_equal(map_parameters(tmp_path / "p")["x"], value)


@pytest.mark.parametrize(
    "arrays_",
    [
        [("x", np.zeros(3, np.float32))],
        [("x", np.zeros(4, np.float64))],
        [("y", np.zeros(4, np.float32))],
        [],
        [("x", np.zeros(4, np.float32)), ("y", np.zeros(4, np.float32))],
    ],
)
def test_arrays_must_be_what_was_announced(tmp_path, arrays_):
    with pytest.raises(ValueError):
        write_parameters(tmp_path / "p", {"x": ([4], "float32")}, arrays_)


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "p.safetensors"
    values = {"x": np.arange(100, dtype=np.float32), "y": np.arange(6, dtype=np.int64).reshape(2, 3)}
    types = {name: (list(value.shape), str(value.dtype)) for name, value in values.items()}
    write_parameters(path, types, values.items())
    return path


def test_pages_are_shared_and_writes_do_not_reach_the_file(written):
    before = written.read_bytes()
    mapped = map_parameters(written)
    base = mapped["x"]
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert isinstance(base, np.memmap)
    mapped["x"][:] = -1
    assert (mapped["x"] == -1).all() and written.read_bytes() == before
    assert map_parameters(written)["x"][99] == 99


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_cut_is_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "cut.safetensors"
    write_parameters(path, {"x": ([100], "float32")}, [("x", np.ones(100, np.float32))])
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(UserError, match=r"cut\.safetensors"):
        map_parameters(path)


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_a_garbled_header_is_refused_or_harmless(tmp_path_factory, data):
    """Whatever stands in the header: a refusal in one line, or arrays that lie inside of the file."""
    path = tmp_path_factory.getbasetemp() / "garbled.safetensors"
    write_parameters(
        path,
        {"x": ([4], "float32"), "y": ([2, 3], "int64")},
        [("x", np.ones(4, np.float32)), ("y", np.ones((2, 3), np.int64))],
    )
    whole = bytearray(path.read_bytes())
    length = int.from_bytes(whole[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, 7 + length))] = data.draw(st.sampled_from(b'0123456789-"[]{},.eE:FUI\x00\xff'))
    path.write_bytes(bytes(whole))
    try:
        mapped = map_parameters(path)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert sum(array.nbytes for array in mapped.values()) <= len(whole)


def with_header(path, entries, data=b"\0" * 64):
    text = json.dumps(entries).encode() if not isinstance(entries, bytes) else entries
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype="F32", shape=(16,), offsets=(0, 64)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"not JSON",
        b"\xff\xfe",
        {"x": None},
        {"x": {}},
        {"x": entry(dtype="F99")},
        {"x": entry(dtype=["F32"])},
        {"x": entry(shape=(15,))},
        {"x": entry(shape=("16",))},
        {"x": entry(shape=(-4, -4))},
        {"x": entry(shape=(4.0, 4))},
        {"x": entry(offsets=(0, 60))},
        {"x": entry(offsets=(0, 128))},
        {"x": entry(offsets=(64, 128))},
        {"x": entry(offsets=(-64, 0))},
        {"x": entry(offsets=(-64, 0)), "y": entry()},
        {"x": entry(shape=(0,), offsets=(-64, -64)), "y": entry()},
        {"x": entry(offsets=("0", "64"))},
        {"x": entry(offsets=(0.0, 64.0))},
        {"x": entry(shape=(16, 10**30, 0), offsets=(0, 0)), "y": entry()},
    ],
)
def test_lying_headers_are_refused(tmp_path, header):
    with pytest.raises(UserError, match=r"p\.safetensors"):
        map_parameters(with_header(tmp_path / "p.safetensors", header))


def test_the_header_of_another_writer_is_read(tmp_path):
    path = with_header(tmp_path / "p.safetensors", {"__metadata__": {"format": "pt"}, "x": entry()})
    assert list(read_header(path)[0]) == ["x"] and map_parameters(path)["x"].shape == (16,)
