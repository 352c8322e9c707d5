"""Digests that are remembered: right after every change, and no worse without a cache."""

import hashlib
import os

import pytest

from utils import digests
from utils.digests import cache_folder, known_digests, remember, sha256


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TVMERGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_file_is_read_once(tmp_path, cache, monkeypatch):
    path, read = tmp_path / "x", []
    path.write_bytes(b"abc")
    monkeypatch.setattr(digests, "sha256", lambda path: read.append(path) or sha256(path))
    expected = {path: hashlib.sha256(b"abc").hexdigest()}
    assert known_digests([path]) == known_digests([path]) == expected
    assert read == [path]


def test_another_time_stamp_or_size_is_read_again(tmp_path, cache):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    before = known_digests([path])[path]
    stamp = path.stat().st_mtime_ns
    path.write_bytes(b"abd")
    os.utime(path, ns=(stamp + 1, stamp + 1))
    assert known_digests([path])[path] == hashlib.sha256(b"abd").hexdigest() != before
    path.write_bytes(b"abde")
    os.utime(path, ns=(stamp + 1, stamp + 1))
    assert known_digests([path])[path] == hashlib.sha256(b"abde").hexdigest()


@pytest.mark.parametrize("content", [b"", b"\xff", b"[1]", b'{"a"'])
def test_a_damaged_memory_is_forgotten(tmp_path, cache, content):
    cache.mkdir()
    (cache / "digests.json").write_bytes(content)
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert known_digests([path])[path] == sha256(path)
    assert known_digests([path])[path] == sha256(path)


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("TVMERGE_CACHE", str(tmp_path / "file" / "cache"))
    remember({tmp_path / "file": "0"})
    assert known_digests([tmp_path / "file"])[tmp_path / "file"] == sha256(tmp_path / "file")


def test_the_folder_of_the_cache(monkeypatch):
    monkeypatch.setenv("TVMERGE_CACHE", "/a/b")
    assert str(cache_folder()) == "/a/b"
    monkeypatch.delenv("TVMERGE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert str(cache_folder()) == "/c/tvmerge"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder().parts[-2:] == (".cache", "tvmerge")
