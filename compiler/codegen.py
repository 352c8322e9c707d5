"""Native code for a lowered module, kernels on all cores at once.

TVM compiles a module on one thread, and most of a build is LLVM at work on the kernels. So they are shared out to
object files, made in threads (TVM's calls run without Python's lock), and linked with what remains.
"""

from __future__ import annotations

import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tvm
from tvm import relax, tirx
from tvm.relax import vm_build
from tvm.support import cc

from runtime.artifact import Launch
from utils.cpu import available_cores
from utils.errors import UserError
from utils.progress import progress
from utils.targets import runs_on_this_system

CHUNK = 6  # kernels an object file


@dataclass(frozen=True)
class MachineCode:
    """The kernels of a GPU: a file of machine code, to be copied, and how each of them is launched, by symbol."""

    path: Path
    launches: dict[str, Launch]


class NativeCode:
    """Compiled functions and the bytecode that calls them, until ``export`` links them."""

    def __init__(
        self,
        executable: relax.VMExecutable,
        objects: list[Path],
        folder: tempfile.TemporaryDirectory,
        linker: str | None = None,
    ) -> None:
        self._executable = executable
        self._objects = objects
        self._folder = folder  # removed with this object
        self._linker = linker  # of another machine's code

    def export(self, library: Path) -> None:
        """Link everything into the shared library ``library``."""
        options = {} if self._linker is None else {"fcompile": cc.cross_compiler(self._linker)}
        self._executable.export_library(str(library), addons=[str(path) for path in self._objects], **options)


def bytecode(builder: relax.ExecBuilder, module: tvm.IRModule) -> tvm.IRModule:
    """Give ``builder`` the Relax functions of ``module`` and return the functions in TensorIR."""
    left = vm_build._vmcodegen(builder, module, "bytecode")
    return tvm.IRModule({v: f for v, f in left.functions_items() if isinstance(f, tirx.PrimFunc)})


def linker(triple: str) -> str | None:
    """Return the compiler that links code for the machine of ``triple``, or None where it is this one's.

    Raises:
        UserError: it is not installed.
    """
    if not triple or runs_on_this_system(triple):
        return None
    name, package = f"{triple}-g++", f"g++-{triple.replace('_', '-')}"
    if shutil.which(name) is None:
        raise UserError(
            f"--cpu: {name} links code for {triple} and is not here; install it (Debian's {package}), build on such "
            "a machine, or use --cpu native"
        )
    return name


def generate(name: str, module: tvm.IRModule, target: tvm.target.Target) -> NativeCode:
    """Generate native code for a module that the pipeline has lowered; ``name`` labels the progress bar.

    Raises:
        UserError: see ``linker``.
    """
    builder = relax.ExecBuilder()
    kernels = list(bytecode(builder, module).functions_items())
    chunks = [tvm.IRModule(dict(kernels[i : i + CHUNK])) for i in range(0, len(kernels), CHUNK)] or [tvm.IRModule({})]
    folder = tempfile.TemporaryDirectory(prefix="tvmerge-")

    def compile_chunk(index: int) -> Path:
        path = Path(folder.name) / f"kernels{index}.o"
        tvm.tirx.build(chunks[index], target=target).write_to_file(str(path))
        return path

    with ThreadPoolExecutor(available_cores()) as pool:
        made = pool.map(compile_chunk, range(1, len(chunks)))
        objects = list(progress(made, f"{name}: compile", total=len(chunks) - 1))
    executable = vm_build._vmlink(builder, target, tir_mod=chunks[0])
    return NativeCode(executable, objects, folder, linker(str(target.attrs.get("mtriple", ""))))
