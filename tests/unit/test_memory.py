import pytest

from utils import groups, memory
from utils.memory import available_memory, peak_memory


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A system of our own making: a dict of its files by name."""
    for module, name in ((memory, "STATUS"), (memory, "MEMINFO"), (groups, "OWN"), (groups, "GROUPS")):
        monkeypatch.setattr(module, name, tmp_path / name.lower())
    monkeypatch.setattr("resource.getrlimit", lambda which: (-1, -1))

    def write(**files):
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


def write_group(folder, limit, used, inactive):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {"max": limit, "current": used, "stat": f"anon 5\ninactive_file {inactive}\n"}.items():
        (folder / f"memory.{name}").write_text(str(text))


def test_this_system_tells():
    assert 1 << 20 < available_memory() < 1 << 50 and 1 << 20 < peak_memory() < 1 << 50


def test_what_the_system_has(system):
    system(meminfo="MemTotal:  99 kB\nMemAvailable:      12 kB\n")
    assert available_memory() == 12 * 1024


def test_a_system_that_tells_nothing(system):
    assert available_memory() is None and peak_memory() > 0


def test_each_group_counts_with_its_file_cache_as_free(system, tmp_path):
    system(meminfo="MemAvailable: 1000 kB\n", own="1:cpu:/x\n0::/a/b\n")
    write_group(tmp_path / "groups" / "a" / "b", "max\n", 7, 0)
    assert available_memory() == 1000 * 1024
    write_group(tmp_path / "groups" / "a", 5000, 4000, 300)
    assert available_memory() == 1300
    write_group(tmp_path / "groups" / "a" / "b", 600, 900, 100)
    assert available_memory() == 0


def test_groups_of_the_first_version(system, tmp_path):
    """In a container the group's own folder is mounted in the place of the root: the path told is not there."""
    system(meminfo="MemAvailable: 1000 kB\n", own="4:cpuset,memory:/docker/ab12\n1:cpu:/x\n0::/\n")
    root = tmp_path / "groups" / "memory"
    root.mkdir(parents=True)
    values = {"limit_in_bytes": 5000, "usage_in_bytes": 4000, "stat": "inactive_file 9\ntotal_inactive_file 300\n"}
    for name, text in values.items():
        (root / f"memory.{name}").write_text(str(text))
    assert available_memory() == 1300
    (root / "memory.limit_in_bytes").write_text("9223372036854771712\n")  # no limit
    assert available_memory() == 1000 * 1024


def test_the_limit_of_address_space(system, monkeypatch):
    system(meminfo="MemAvailable: 1000 kB\n", status="VmSize:\t  20 kB\n")
    monkeypatch.setattr("resource.getrlimit", lambda which: (50 * 1024, -1))
    assert available_memory() == 30 * 1024
