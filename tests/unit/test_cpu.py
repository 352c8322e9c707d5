"""What a machine has, by its /proc/cpuinfo: instruction sets, names, cores; and what the user hides."""

import pytest
from machines import (
    APPLE,
    GRAVITON_2,
    GRAVITON_3,
    HASWELL,
    RASPBERRY_5,
    XEON,
    XEON_AMX,
    XEON_AVX2,
    ZEN_2,
    ZEN_5,
    arm_cpuinfo,
    cpuinfo,
    stand_in,
)

from utils import cpu, groups
from utils.cpu import available_cores, cpu_name, host_instruction_sets, permit_tiles, physical_cores
from utils.errors import UserError
from utils.features import HIDE, consistent, instruction_sets


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return a function that makes this process believe in a machine."""
    return lambda text, permitted=True: stand_in(monkeypatch, tmp_path, text, permitted)


@pytest.mark.parametrize(
    ("flags", "has", "lacks"),
    [
        (HASWELL, {"avx2", "fma", "lzcnt", "bmi", "sse42"}, {"avx512f", "sse4a", "amxtile"}),
        (ZEN_2, {"avx2", "sse4a", "sha"}, {"avx512f", "vaes"}),
        (ZEN_5, {"avx512bf16", "avx512vnni", "avxvnni", "prfchw"}, {"avx512fp16", "amxtile"}),
        (XEON, {"avx512bf16", "avx512fp16"}, {"amxtile", "amxbf16"}),
        (XEON_AMX, {"avx512bf16", "amxtile", "amxbf16", "amxint8"}, set()),
        (XEON_AVX2, {"avx2", "vaes"}, {"avx512f", "avx512vnni", "amxtile"}),
    ],
)
def test_instruction_sets_by_normal_name(machine, flags, has, lacks):
    machine(cpuinfo(flags))
    found = set(host_instruction_sets())
    assert has <= found and not lacks & found and found == consistent(found)
    assert permit_tiles() == ("amxtile" in found)


def test_amx_that_the_system_does_not_permit_is_none(machine):
    machine(cpuinfo(XEON_AMX), permitted=False)
    assert not permit_tiles() and host_instruction_sets() == instruction_sets(XEON.split())


def test_a_set_without_what_it_needs_is_none(machine):
    """A hypervisor that hides the foundation and forgets the rest."""
    machine(cpuinfo(ZEN_5.replace(" avx512f", "").replace(" fma", "")))
    found = set(host_instruction_sets())
    assert "avx2" in found and not any(name.startswith("avx512") for name in found)


@pytest.mark.parametrize(
    ("text", "has", "name"),
    [
        (arm_cpuinfo(GRAVITON_2, "0x41", "0xd0c"), {"neon", "dotprod", "fullfp16", "lse"}, "Arm Neoverse-N1"),
        (arm_cpuinfo(GRAVITON_3, "0x41", "0xd40"), {"sve", "bf16", "i8mm"}, "Arm Neoverse-V1"),
        (arm_cpuinfo(APPLE, "0x61", "0x022", "0x023"), {"neon", "sha3"}, "Apple M1"),
        (arm_cpuinfo(APPLE, "0x61", "0x000"), {"neon"}, "Apple core, part 0x000"),
        (arm_cpuinfo(RASPBERRY_5, "0x41", "0xd05", "0xd0b"), {"dotprod"}, "Arm core, part 0xd05 and Arm Cortex-A76"),
        (arm_cpuinfo("fp asimd", "0x99", "0x001"), {"neon"}, "Arm, maker 0x99 core, part 0x001"),
    ],
)
def test_an_arm(machine, monkeypatch, tmp_path, text, has, name):
    monkeypatch.setattr(cpu, "BOARD", tmp_path / "no-model")
    machine(text)
    assert has <= set(host_instruction_sets()) and cpu_name() == name


def test_a_board_tells_its_name_too(machine, monkeypatch, tmp_path):
    (tmp_path / "model").write_text("Raspberry Pi 5 Model B Rev 1.0\0")
    monkeypatch.setattr(cpu, "BOARD", tmp_path / "model")
    machine(arm_cpuinfo(RASPBERRY_5, "0x41", "0xd0b"))
    assert cpu_name() == "Arm Cortex-A76 (Raspberry Pi 5 Model B Rev 1.0)"


@pytest.mark.parametrize("text", [None, "", "processor\t: 0\n"])
def test_a_system_that_tells_nothing(machine, monkeypatch, text):
    monkeypatch.setattr(cpu.platform, "processor", lambda: "Thing 3000")
    machine(text)
    assert host_instruction_sets() is None and not permit_tiles()
    assert cpu_name() in ("Thing 3000", "unknown CPU") or cpu.BOARD.exists()


class TestHidden:
    @pytest.mark.parametrize(
        ("hide", "has", "lacks"),
        [
            ("amx", {"avx512bf16"}, {"amxtile", "amxbf16", "amxint8"}),
            ("amx,avx512", {"avx2", "fma", "avxvnni"}, {"amxtile", "avx512f", "avx512bf16", "avx512vnni"}),
            ("avx2", {"avx", "fma", "amxtile"}, {"avx2", "avx512f", "avx512bf16", "avxvnni", "vaes"}),
            ("avx512_bf16", {"avx512f", "avx512vnni"}, {"avx512bf16"}),
            (" AVX512BW , amx_int8,", {"avx512f", "amxbf16"}, {"avx512bw", "avx512bf16", "amxint8"}),
            ("", {"amxtile", "avx512f"}, set()),
        ],
    )
    def test_families_and_single_sets(self, machine, monkeypatch, hide, has, lacks):
        machine(cpuinfo(XEON_AMX))
        monkeypatch.setenv(HIDE, hide)
        found = set(host_instruction_sets())
        assert has <= found and not lacks & found
        assert permit_tiles() == ({"amxtile", "amxbf16"} <= found)

    @pytest.mark.parametrize("hide", ["avx521", "amx,everything", "avx5", "x"])
    def test_an_unknown_name_is_one_line(self, machine, monkeypatch, hide):
        machine(cpuinfo(XEON_AMX))
        monkeypatch.setenv(HIDE, hide)
        with pytest.raises(UserError, match=f"{HIDE}: .* is unknown.*families") as refused:
            host_instruction_sets()
        assert "\n" not in str(refused.value)


class TestCores:
    @pytest.fixture
    def system(self, machine, monkeypatch, tmp_path):
        """Eight logical CPUs: two hyper-threads each of four cores, 0 and 4 of the first."""
        blocks = (
            f"processor\t: {i}\nmodel name\t: x\nphysical id\t: 0\ncore id\t\t: {i % 4}\nflags\t\t: sse2\n"
            for i in range(8)
        )
        machine("\n".join(blocks) + "\n")
        monkeypatch.setattr(cpu, "_mask", lambda: set(range(8)))
        monkeypatch.setattr(groups, "OWN", tmp_path / "own")
        monkeypatch.setattr(groups, "GROUPS", tmp_path / "groups")

        def write(own, **files):
            (tmp_path / "own").write_text(own)
            for name, text in files.items():
                path = tmp_path / "groups" / name.replace("__", "/").replace("_DOT_", ".")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)

        return write

    def test_all_of_a_machine(self, system):
        assert (available_cores(), physical_cores()) == (8, 4)

    @pytest.mark.parametrize(
        ("mask", "logical", "physical"), [({0, 4}, 2, 1), ({0, 1}, 2, 2), ({3}, 1, 1), ({1, 2, 3, 5}, 4, 3)]
    )
    def test_a_mask_of_hyper_threads(self, system, monkeypatch, mask, logical, physical):
        monkeypatch.setattr(cpu, "_mask", lambda: mask)
        assert (available_cores(), physical_cores()) == (logical, physical)

    @pytest.mark.parametrize(
        ("quota", "logical", "physical"),
        [
            ("max", 8, 4),
            ("150000", 2, 2),
            ("140000", 1, 1),
            ("50000", 1, 1),
            ("1000", 1, 1),
            ("600000", 6, 4),
            ("9900000", 8, 4),
        ],
    )
    def test_a_quota_of_the_second_version(self, system, quota, logical, physical):
        system("0::/a/b\n", a__b__cpu_DOT_max="max 100000\n", a__cpu_DOT_max=f"{quota} 100000\n")
        assert (available_cores(), physical_cores()) == (logical, physical)

    @pytest.mark.parametrize(("quota", "logical"), [("-1", 8), ("300000", 3), ("20000", 1)])
    @pytest.mark.parametrize("where", ["cpu__docker__ab12__", "cpu__"])
    def test_a_quota_of_the_first_version(self, system, quota, logical, where):
        """In a container the folder of the path that is told is not there, but its root is."""
        files = {f"{where}cpu_DOT_cfs_quota_us": quota, f"{where}cpu_DOT_cfs_period_us": "100000\n"}
        system("5:memory:/docker/ab12\n4:cpu,cpuacct:/docker/ab12\n0::/\n", **files)
        assert available_cores() == logical

    def test_the_tightest_of_all_groups_counts(self, system):
        system("0::/a/b\n", a__b__cpu_DOT_max="400000 100000\n", a__cpu_DOT_max="200000 100000\n")
        assert available_cores() == 2


def test_this_machine():
    assert 1 <= physical_cores() <= available_cores() and cpu_name()
