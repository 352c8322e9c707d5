"""An artifact for a GPU on a machine that has none, another one, or one that is full: one clear line each."""

import dataclasses
from collections import defaultdict
from types import SimpleNamespace

import pytest
import tvm
from small_component import block_component, load, save

from runtime import gpu
from runtime.gpu import is_out_of_memory, require_gpu
from utils.errors import UserError

DEVICE = {"exist": True, "compute_version": "9.0", "device_name": "NVIDIA H200"}


@pytest.fixture
def machine(monkeypatch):
    """Return a function that gives this machine a GPU, and a TVM that can use it or not."""

    def give(present="sm_90", can_use=True, **changes):
        device = SimpleNamespace(**(DEVICE | changes))
        found = tvm.get_global_func
        monkeypatch.setattr(tvm, "cuda", lambda: device)
        monkeypatch.setattr(gpu, "present_arch", lambda: present)
        monkeypatch.setattr(
            gpu.tvm,
            "get_global_func",
            lambda name, **options: (print if can_use else None) if name == gpu.CREATE else found(name, **options),
        )
        return device

    return give


def manifest(arch):
    return SimpleNamespace(target={"kind": "cuda", "arch": arch})


def test_a_gpu_that_fits(machine):
    device = machine()
    assert require_gpu(manifest("sm_90")) is device
    machine(compute_version="8.9")
    require_gpu(manifest("sm_80"))


@pytest.mark.parametrize(
    ("arch", "changes", "words"),
    [
        ("sm_90", {"present": None}, ["no GPU was found here", "--target llvm"]),
        ("sm_90", {"can_use": False}, ["TVM can't use the GPU", "libcudart.so.13", "LD_LIBRARY_PATH"]),
        ("sm_90", {"exist": False}, ["TVM can't use the GPU"]),
        ("sm_80", {}, ["for sm_80", "NVIDIA H200", "is sm_90", "--cuda-arch sm_90"]),
        ("sm_89", {"compute_version": "8.6"}, ["for sm_89", "is sm_86", "--cuda-arch sm_86"]),
        ("sm_90", {"compute_version": "12.0"}, ["is sm_120", "no kernels"]),
    ],
)
def test_a_gpu_that_does_not(machine, arch, changes, words):
    machine(**changes)
    with pytest.raises(UserError) as refused:
        require_gpu(manifest(arch))
    assert "\n" not in str(refused.value) and all(word in str(refused.value) for word in words), refused.value


def test_memory_that_runs_out_on_the_way(tmp_path):
    component = block_component()
    engine = load(save(component, tmp_path), component.name, tmp_path)
    name = component.functions[0].name

    def full(*_tensors):
        raise RuntimeError("CUDA: out of memory\nin a file of its own")

    engine._machine = defaultdict(lambda: full)
    inputs = [value.numpy() for _, value in component.functions[0].inputs]
    with pytest.raises(UserError, match=r"the GPU's memory ran out at .*build with less --height") as refused:
        engine(name, *inputs)
    assert "\n" not in str(refused.value)
    assert not is_out_of_memory(ValueError("a shape does not fit"))


def test_manifest_knows_where_it_runs(tmp_path):
    component = block_component()
    entry = save(component, tmp_path)
    assert entry.device is None and entry.references is None and entry.files() == [entry.library, entry.parameters]
    other = dataclasses.replace(entry, references=entry.library)
    assert other.files() == [entry.library, entry.parameters, entry.library]
