"""The files of an artifact: libraries, packed parameters, tokenizer; staged aside and renamed when all is well."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tvm
from tvm import relax

from compiler.native import Native
from compiler.trace import Traced
from runtime.artifact import MANIFEST, Component, FunctionType, TensorType, describe
from runtime.parameters import write_parameters
from utils.errors import UserError
from utils.progress import progress


def _is_running(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        pass
    return True


def _remove_leftovers(target: Path) -> None:
    """Remove what builds of this folder left that were killed; one that was killed while renaming is undone."""
    for role in ("old", "partial"):
        for path in target.parent.glob(f".{target.name}.{role}-*"):
            if _is_running(path.name.rpartition("-")[2]):
                continue
            if role == "old" and not target.exists():
                path.rename(target)
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Give a temporary sibling of ``target`` to fill; when the block ends well it takes the place of ``target``.

    When the block fails or is interrupted, the sibling is removed and ``target`` is as it was.

    Raises:
        UserError: ``target`` is a folder of something else, or nothing can be written there.
    """
    target = target.absolute()
    if target.exists() and not target.is_dir():
        raise UserError(f"--output-dir {target} is a file; choose a folder")
    if target.is_dir() and any(target.iterdir()) and not (target / MANIFEST).is_file():
        raise UserError(f"--output-dir {target} is not empty and holds no artifact; choose another folder")
    staging, old = (target.parent / f".{target.name}.{role}-{os.getpid()}" for role in ("partial", "old"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        staging.mkdir()
    except OSError as error:
        raise UserError(f"--output-dir {target} can't be written: {error.strerror}") from None
    try:
        yield staging
        if target.exists():
            target.rename(old)
        staging.rename(target)
    except OSError as error:
        raise UserError(f"--output-dir {target}: {error.strerror or error}") from error
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        for path in (staging, old):
            shutil.rmtree(path, ignore_errors=True)


def _packed(
    name: str, machine: relax.VirtualMachine, native: Native, raw: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    for packed, packing in progress(native.packing.items(), f"{name}: pack", total=len(native.packing)):
        sources = [raw[source] for source in packing.sources]
        if not packing.function:
            yield packed, sources[0]
            continue
        tensors = [tvm.runtime.tensor(source) for source in sources]
        yield packed, machine[packing.function](*tensors).numpy()


def write_component(traced: Traced, native: Native, folder: Path) -> Component:
    """Write the library and the packed parameters of a component and return its entry in the manifest.

    Packing runs the library's own packing functions, one parameter in memory at a time.
    """
    library = folder / f"{traced.name}.so"
    native.code.export(library)
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(library)), tvm.cpu())
    parameters = folder / "params" / f"{traced.name}.safetensors"
    parameters.parent.mkdir(exist_ok=True)
    write_parameters(parameters, native.packed_types, _packed(traced.name, machine, native, traced.parameters))
    functions = {}
    for function, names in traced.inputs.items():
        pairs = zip(names, traced.module[function].params[: len(names)], strict=True)
        types = [TensorType(n, [int(e) for e in v.ty.shape], str(v.ty.dtype)) for n, v in pairs]
        functions[function] = FunctionType(types, native.outputs[function])
    return Component(
        library=describe(library, folder),
        parameters=describe(parameters, folder),
        packing=native.packing,
        functions=functions,
        psnr={},
        time_share={},
        raw_bytes=sum(value.nbytes for value in traced.parameters.values()),
    )
