"""--target, --cuda-arch and --dtype: what code is made for, with and without a GPU here."""

import json

import pytest

from utils import targets
from utils.config import BuildConfig
from utils.errors import UserError
from utils.gpu import ARCHS, nearest_arch, present_arch, runs_on
from utils.targets import gpu_arch, precision


@pytest.fixture
def gpu(monkeypatch):
    """Return a function that says which GPU is here."""
    return lambda arch: monkeypatch.setattr(targets, "present_arch", lambda: arch)


def cuda(**options):
    return json.dumps({"kind": "cuda", **options})


@pytest.mark.parametrize(
    ("target", "arch", "present", "expected"),
    [
        ("auto", None, None, None),
        ("auto", None, "sm_90", "sm_90"),
        ("auto", None, "sm_87", "sm_86"),
        ("auto", None, "sm_61", None),
        ("auto", "sm_80", None, "sm_80"),
        ("llvm", None, "sm_90", None),
        ('{"kind": "llvm"}', None, "sm_90", None),
        ("cuda", None, "sm_89", "sm_89"),
        ("cuda", "sm_75", "sm_90", "sm_75"),
        (cuda(arch="sm_86"), None, None, "sm_86"),
        (cuda(), "sm_86", None, "sm_86"),
    ],
)
def test_what_code_is_made_for(gpu, target, arch, present, expected):
    gpu(present)
    assert gpu_arch(target, arch) == expected
    assert BuildConfig(target=target, cuda_arch=arch).precision == ("float32" if expected is None else "float16")


@pytest.mark.parametrize("target", ["auto", "llvm"])
def test_a_cpu_that_is_named_is_what_code_is_for(gpu, target):
    gpu("sm_90")
    assert gpu_arch(target, None, "native") is None
    assert BuildConfig(target=target, cpu="x86-64-v3").precision == "float32"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"target": "cuda"}, ["--cpu does nothing for cuda", "--target llvm"]),
        ({"target": cuda(arch="sm_90")}, ["--cpu does nothing for cuda"]),
        ({"target": '{"kind": "llvm", "mcpu": "haswell"}'}, ["--cpu and --target", "leave one"]),
        ({"cuda_arch": "sm_90"}, ["--cpu and --cuda-arch", "leave one"]),
    ],
)
def test_a_cpu_beside_another_machine_is_refused(gpu, flags, words):
    gpu("sm_90")
    with pytest.raises(UserError) as refused:
        BuildConfig(cpu="x86-64-v3", **flags)
    assert "\n" not in str(refused.value) and all(word in str(refused.value) for word in words), refused.value


@pytest.mark.parametrize(
    ("triple", "here"),
    [
        ("x86_64-linux-gnu", True),
        ("x86_64-conda-linux-gnu", True),
        ("amd64-unknown-linux", True),
        ("aarch64-linux-gnu", False),
        ("x86_64-apple-macos", False),
        ("x86_64-linux-android", False),
        ("i686-linux-gnu", False),
        ("", False),
    ],
)
def test_which_triples_run_here(monkeypatch, triple, here):
    monkeypatch.setattr(targets.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(targets.platform, "system", lambda: "Linux")
    assert targets.runs_on_this_system(triple) == here


@pytest.mark.parametrize(
    ("target", "arch", "present", "words"),
    [
        ("cuda", None, None, ["--target cuda", "no GPU was found here", "--cuda-arch", *ARCHS]),
        ("cuda", None, "sm_61", ["the GPU here is sm_61", "--cuda-arch"]),
        ("cuda", "sm_91", None, ["--cuda-arch 'sm_91'", "did you mean sm_90"]),
        ("cuda", "90", None, ["--cuda-arch '90'"]),
        ("llvm", "sm_90", None, ["--cuda-arch does nothing without --target cuda"]),
        (cuda(), None, "sm_90", ["name an architecture"]),
        (cuda(arch="sm_90"), "sm_80", None, ["--cuda-arch sm_80", "differ"]),
        (cuda(arch=["sm_90"]), None, None, ["--target arch"]),
        (cuda(arch="sm_90", max_num_threads=3), None, None, ["max_num_threads"]),
    ],
)
def test_what_is_refused(gpu, target, arch, present, words):
    gpu(present)
    with pytest.raises(UserError) as refused:
        BuildConfig(target=target, cuda_arch=arch)
    assert "\n" not in str(refused.value) and all(word in str(refused.value) for word in words), refused.value


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"dtype": "float32"}, ["--dtype float32", "cuda", "float16 or bfloat16"]),
        ({"dtype": "bfloat16", "cuda_arch": "sm_75"}, ["--dtype bfloat16", "sm_80", "sm_75"]),
        ({"winograd_tile": 2}, ["--winograd-tile does nothing for cuda"]),
        ({"tune_minutes": 1.0}, ["--tune-minutes does nothing for cuda"]),
    ],
)
def test_what_cuda_has_not(flags, words):
    with pytest.raises(UserError) as refused:
        BuildConfig(**{"target": "cuda", "cuda_arch": "sm_90", **flags})
    assert all(word in str(refused.value) for word in words), refused.value


def test_precision_that_is_asked_for():
    assert precision("sm_80", "bfloat16") == precision(None, "bfloat16") == "bfloat16"


def test_code_runs_within_a_generation_on_no_older_gpu():
    assert runs_on("sm_80", "sm_89") and runs_on("sm_90", "sm_90")
    assert not runs_on("sm_89", "sm_80") and not runs_on("sm_90", "sm_100") and not runs_on("sm_80", "sm_90")
    assert [nearest_arch(f"sm_{number}") for number in (75, 80, 87, 90, 100, 70)] == [
        "sm_75",
        "sm_80",
        "sm_86",
        "sm_90",
        None,
        None,
    ]
    assert nearest_arch("sm_89") == "sm_89"


def test_this_machine_tells_its_gpu_or_none():
    assert present_arch() is None or present_arch().startswith("sm_")
