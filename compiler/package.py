"""A component's files in the artifact: its library and its packed parameters."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tvm
from tvm import relax

from compiler.native import Native
from compiler.trace import Traced
from runtime.artifact import Component, DeviceCode, describe
from runtime.parameters import write_parameters
from utils.progress import progress


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


@contextmanager
def _packer(native: Native, library: Path) -> Iterator[relax.VirtualMachine]:
    """Give what has the packing functions: the component's ``library``, or one for this machine, then removed."""
    with tempfile.TemporaryDirectory(prefix="tvmerge-") as folder:
        if native.packer is not None:
            library = Path(folder) / "packer.so"
            native.packer.export(library)
        yield relax.VirtualMachine(tvm.runtime.load_module(str(library)), tvm.cpu())


def write_component(traced: Traced, native: Native, folder: Path, facts: dict[str, str]) -> Component:
    """Write the library and the packed parameters of a component and return its entry in the manifest.

    Packing runs the library's own packing functions, or those of ``native.packer``. What only the build knows in the
    end (parity, shares of time, seconds) is left empty. ``facts``: see ``compiler.facts``.
    """
    library = folder / f"{traced.name}.so"
    native.code.export(library)
    device = None
    if native.device is not None:
        code = folder / f"{traced.name}.cubin"
        shutil.copy2(native.device.path, code)
        device = DeviceCode(describe(code, folder), native.device.launches)
    parameters = folder / "params" / f"{traced.name}.safetensors"
    parameters.parent.mkdir(exist_ok=True)
    with _packer(native, library) as machine:
        packed = _packed(traced.name, machine, native, traced.parameters)
        digest = write_parameters(parameters, native.packed_types, packed)
    return Component(
        library=describe(library, folder),
        parameters=describe(parameters, folder, digest),
        packing=native.packing,
        functions=native.functions,
        kernels={symbol: kernel for symbol, kernel in native.kernels.items() if kernel.calls},
        psnr={},
        time_share={},
        raw_bytes=sum(value.nbytes for value in traced.parameters.values()),
        build_seconds=0.0,
        optimisations=native.used,
        facts=facts,
        device=device,
    )
