"""The sizes of caches, as Linux tells them of a core."""

import pytest

from utils import cpu
from utils.cpu import Caches, cache_sizes

ZEN = {"0": ("1", "Data", "48K", "0-1"), "1": ("1", "Instruction", "32K", "0-1"), "2": ("2", "Unified", "1024K", "0-1")}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return a function that makes a machine with these caches, and ``siblings`` hyper-threads on the first core."""
    monkeypatch.setattr(cpu, "CPUS", tmp_path)

    def make(caches, siblings):
        (tmp_path / "cpu0" / "topology").mkdir(parents=True)
        (tmp_path / "cpu0" / "topology" / "thread_siblings_list").write_text(siblings + "\n")
        for index, values in caches.items():
            folder = tmp_path / "cpu0" / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            for name, value in zip(("level", "type", "size", "shared_cpu_list"), values, strict=True):
                (folder / name).write_text(value + "\n")

    return make


def test_hyper_threads_share_a_cores_caches_and_cores_the_third_level(machine):
    machine({**ZEN, "3": ("3", "Unified", "32768K", "0-15")}, "0-1")
    assert cache_sizes() == Caches(48 << 10, 1 << 20, 32 << 20)


def test_a_second_level_that_four_cores_share_is_parted(machine):
    machine({"0": ("1", "Data", "32K", "0"), "2": ("2", "Unified", "2M", "0,1-3")}, "0")
    assert cache_sizes() == Caches(32 << 10, 512 << 10, 0)


@pytest.mark.parametrize("caches", [{}, {"0": ("1", "Data", "unknown", "0")}, {"0": ("one", "Data", "32K", "0")}])
def test_where_nothing_is_told_the_usual_is_taken(machine, caches):
    machine(caches, "")
    assert cache_sizes() == Caches()


def test_this_machine():
    found = cache_sizes()
    assert 8 << 10 <= found.l1 < found.l2 and found.l3 >= 0
