"""Runs kernels for CUDA on the host: their own source, compiled with gpu_emulator.h, called by their own host code."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import tvm
import tvm_ffi
from tvm.tirx.build import codegen_build

from compiler.gpu import native as gpu_native
from compiler.gpu.cuda_code import DeviceCode, split
from compiler.gpu.machine import Gpu
from compiler.gpu.native import gpu_target
from runtime import artifact, engine

HEADER = Path(__file__).with_name("gpu_emulator.h")
ASSERTIONS = {"tirx.disable_assert": True}  # that tensors are on a GPU
SHARED = re.compile(r"extern __shared__(?: __align__\(\d+\))? (\w+) (\w+)\[\];")  # of a size that the launch tells
_numbers = itertools.count()


def cuda_include() -> Path:
    """Return the folder of CUDA's headers, beside nvcc."""
    found = shutil.which("nvcc")
    assert found is not None, "nvcc is needed"
    listed = subprocess.run([found, "--dryrun", "-c", "none.cu"], capture_output=True, text=True, check=False).stderr
    (line,) = [line for line in listed.splitlines() if line.startswith("#$ INCLUDES=")]
    return Path(line.partition("-I")[2].strip().strip('"').split('"')[0])


def _wrapper(name: str, launch: object) -> str:
    tags = ", ".join(json.dumps(tag) for tag in launch.parameters)
    return f"""
TVM_FFI_DLL_EXPORT int __tvm_ffi_{name}(void*, const TVMFFIAny* arguments, int32_t, TVMFFIAny*) {{
  static const char* const tags[] = {{{tags}}};
  return emulator::launch(arguments, {len(launch.arguments)}, tags, {len(launch.parameters)},
                          [](void** p) {{ emulator::apply({name}, p); }});
}}
"""


APPLY = """
#include <utility>
namespace emulator {
template <typename... A, size_t... I>
void apply(void (*kernel)(A...), void** given, std::index_sequence<I...>) { kernel(static_cast<A>(given[I])...); }
template <typename... A>
void apply(void (*kernel)(A...), void** given) { apply(kernel, given, std::index_sequence_for<A...>()); }
}
extern "C" {
"""


def emulated(code: DeviceCode, folder: Path) -> tvm.runtime.Module:
    """Return the kernels of ``code`` as a module of functions for the host."""
    wrappers = "".join(_wrapper(name, launch) for name, launch in code.launches.items())
    source, library = folder / "kernels.cc", folder / f"kernels{next(_numbers)}.so"
    static = code.source.replace("__shared__ alignas(64)", "static __attribute__((aligned(64)))")
    kernels = SHARED.sub(r"auto* \2 = reinterpret_cast<\1*>(emulator::shared);", static)
    source.write_text(f'#include "{HEADER}"\n{kernels}\n{APPLY}{wrappers}}}\n', encoding="utf-8")
    includes = [
        f"-I{path}"
        for path in (cuda_include(), tvm_ffi.libinfo.find_include_path(), tvm_ffi.libinfo.find_dlpack_include_path())
    ]
    command = ["g++", "-O1", "-std=c++17", "-w", "-shared", "-fPIC", *includes, str(source), "-o", str(library)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return tvm.runtime.load_module(str(library))


def callers(module: tvm.IRModule, target: tvm.target.Target) -> tvm.runtime.Module:
    """Return the callers of kernels, which take tensors of the host."""
    tvm_ffi.register_global_func("__tvm_set_device", lambda *_: None, override=True)
    host_memory = tvm_ffi.get_global_func("device_api.cpu")  # for what lies between two launches
    tvm_ffi.register_global_func("device_api.cuda", host_memory, override=True)
    with tvm.transform.PassContext(config=ASSERTIONS):
        return codegen_build(module, target)


def device_code(functions: dict[str, tvm.tirx.PrimFunc], gpu: Gpu) -> DeviceCode:
    """Return the code of functions by symbol."""
    named = {symbol: function.with_attr("global_symbol", symbol) for symbol, function in functions.items()}
    return split(tvm.IRModule(named), gpu_target(gpu))


@contextlib.contextmanager
def emulator(functions: dict[str, tvm.tirx.PrimFunc], gpu: Gpu) -> Iterator[tvm.runtime.Module]:
    """Yield the functions, which take tensors of the host."""
    with tempfile.TemporaryDirectory() as name:
        code = device_code(functions, gpu)
        host = callers(code.host, tvm.target.Target("llvm"))
        host.import_module(emulated(code, Path(name)))
        yield host


def _keep_source(source: str, _arch: str, folder: Path, name: str) -> Path:
    path = folder / f"{name}.cu"
    path.write_text(source, encoding="utf-8")
    return path


def stand_in_for_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have builds for cuda keep their source in place of machine code, and engines run it on the host."""
    made: dict[str, tvm.runtime.Module] = {}

    def add_emulated(library: tvm.runtime.Module, device: artifact.DeviceCode, code: Path) -> None:
        source = code.read_text(encoding="utf-8")
        if source not in made:
            with tempfile.TemporaryDirectory() as folder:
                made[source] = emulated(DeviceCode(tvm.IRModule(), source, device.launches), Path(folder))
        library.imports[0].import_module(made[source])

    monkeypatch.setattr(gpu_native, "compile_cuda", _keep_source)
    monkeypatch.setattr(gpu_native, "codegen_build", callers)
    monkeypatch.setattr(engine, "add_kernels", add_emulated)
    monkeypatch.setattr(engine, "require_gpu", lambda _manifest: tvm.cpu())
