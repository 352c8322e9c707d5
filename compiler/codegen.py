"""Native code for a lowered module, kernels on all cores at once.

TVM compiles a module on one thread, and most of a build is LLVM at work on the kernels. So they are shared out to
object files, made in threads (TVM's calls run without Python's lock), and linked with what remains.
"""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tvm
from tvm import relax, tirx
from tvm.relax import vm_build

from runtime.artifact import Launch
from utils.cpu import available_cores
from utils.progress import progress

CHUNK = 6  # kernels an object file


@dataclass(frozen=True)
class MachineCode:
    """The kernels of a GPU: a file of machine code, to be copied, and how each of them is launched, by symbol."""

    path: Path
    launches: dict[str, Launch]


class NativeCode:
    """Compiled functions and the bytecode that calls them, until ``export`` links them."""

    def __init__(
        self, executable: relax.VMExecutable, objects: list[Path], folder: tempfile.TemporaryDirectory
    ) -> None:
        self._executable = executable
        self._objects = objects
        self._folder = folder  # removed with this object

    def export(self, library: Path) -> None:
        """Link everything into the shared library ``library``."""
        self._executable.export_library(str(library), addons=[str(path) for path in self._objects])


def bytecode(builder: relax.ExecBuilder, module: tvm.IRModule) -> tvm.IRModule:
    """Give ``builder`` the Relax functions of ``module`` and return the functions in TensorIR."""
    left = vm_build._vmcodegen(builder, module, "bytecode")
    return tvm.IRModule({v: f for v, f in left.functions_items() if isinstance(f, tirx.PrimFunc)})


def generate(name: str, module: tvm.IRModule, target: tvm.target.Target) -> NativeCode:
    """Generate native code for a module that the pipeline has lowered; ``name`` labels the progress bar."""
    builder = relax.ExecBuilder()
    kernels = list(bytecode(builder, module).functions_items())
    chunks = [tvm.IRModule(dict(kernels[start : start + CHUNK])) for start in range(0, len(kernels), CHUNK)]
    folder = tempfile.TemporaryDirectory(prefix="tvmerge-")

    def compile_chunk(index: int) -> Path:
        path = Path(folder.name) / f"kernels{index}.o"
        tvm.tirx.build(chunks[index], target=target).write_to_file(str(path))
        return path

    with ThreadPoolExecutor(available_cores()) as pool:
        made = pool.map(compile_chunk, range(1, len(chunks)))
        objects = list(progress(made, f"{name}: compile", total=len(chunks) - 1))
    executable = vm_build._vmlink(builder, target, tir_mod=chunks[0])
    return NativeCode(executable, objects, folder)
