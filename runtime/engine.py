"""Runs one component of an artifact: native functions over memory-mapped parameters."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax

from runtime.artifact import Artifact, Manifest, TensorType
from runtime.gpu import add_kernels, is_out_of_memory, require_gpu
from runtime.library import is_whole
from runtime.parameters import map_parameters
from utils.cpu import host_instruction_sets, physical_cores
from utils.errors import UserError
from utils.signals import undisturbed
from utils.targets import architecture, runs_on_this_system

os.environ.setdefault("TVM_BIND_THREADS", "0")  # else TVM moves threads to cores counted from 0, whatever the mask
REASON = 200  # characters of the library's own message
Around = Callable[[str], contextlib.AbstractContextManager[None]]


def _alone(_function: str) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def set_num_threads(num_threads: int | None) -> int:
    """Give TVM ``num_threads`` threads, by default one per physical core, and return how many.

    To be called before the first engine is made: the thread pool never grows afterwards. The threads run where this
    process may run, by its mask.
    """
    count = physical_cores() if num_threads is None else num_threads
    os.environ["TVM_NUM_THREADS"] = str(count)
    tvm.get_global_func("runtime.config_threadpool")(1, count)
    return count


def resolve_device(flag: str, manifest: Manifest) -> tvm.runtime.Device:
    """Return the device for --device.

    Raises:
        UserError: the artifact is for another device or machine, or this CPU lacks an instruction set; or see
            ``require_gpu``.
    """
    built_for = "cuda" if manifest.on_gpu else "cpu"
    if flag not in ("auto", built_for):
        raise UserError(f"--device {flag}: this artifact was built for {built_for}; build with another --target")
    if manifest.on_gpu:
        return require_gpu(manifest)
    triple = str(manifest.target.get("mtriple", ""))
    if triple and not runs_on_this_system(triple):
        raise UserError(f"the artifact is for {triple}, this is {architecture()}; build it with --cpu native")
    host = host_instruction_sets()
    missing = sorted(set(manifest.cpu_features) - set(host)) if host is not None else []
    if missing:
        raise UserError(
            f"this CPU lacks {', '.join(missing)}, which the artifact needs; build it on this machine, or with "
            "--cpu x86-64-v3, which any with AVX2 runs"
        )
    return tvm.cpu()


class Engine:
    """The functions of one component, on one device.

    Raises:
        UserError: the artifact lacks the component, its library is for another platform or of another TVM, or the
            parameter file does not hold what the manifest names.
    """

    def __init__(self, artifact: Artifact, component: str, device: tvm.runtime.Device) -> None:
        if component not in artifact.manifest.components:
            raise UserError(f"{artifact.folder} has no {component}; build the artifact again")
        self.description = artifact.manifest.components[component]
        self.component = component
        self._observed = False
        self._around: Around = _alone
        self.device = device
        library, parameters = (artifact.path(f) for f in (self.description.library, self.description.parameters))
        if not is_whole(library):
            raise UserError(f"{library} can't be loaded here (it was cut short); build the artifact again")
        try:
            loaded = tvm.runtime.load_module(str(library))
            if self.description.device is not None:
                add_kernels(loaded, self.description.device, artifact.path(self.description.device.code))
            self._machine = relax.VirtualMachine(loaded, device)
        except (OSError, ValueError, RuntimeError, AttributeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise UserError(f"{library} can't be loaded here ({reason}); build the artifact on this machine") from None
        mapped = map_parameters(parameters)
        if absent := [name for name in self.description.packing if name not in mapped]:
            raise UserError(f"{parameters} lacks {absent[0]}; build the artifact again")
        self._parameters = self._placed([mapped[name] for name in self.description.packing])

    def _placed(self, parameters: list[np.ndarray]) -> list[tvm.runtime.Tensor]:
        """Return the parameters on the device: the CPU uses them where they are mapped."""
        if self.description.device is None:
            return [tvm.runtime.from_dlpack(parameter) for parameter in parameters]
        try:
            return [tvm.runtime.tensor(parameter, self.device) for parameter in parameters]
        except RuntimeError as error:
            raise self._refused("parameters", error) from error

    def _refused(self, what: str, error: Exception) -> UserError:
        if is_out_of_memory(error):
            return UserError(
                f"the GPU's memory ran out at {self.component}.{what}; free some, or build with less --height, --width "
                "or --batch-size"
            )
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:REASON]
        return UserError(
            f"{self.component}.{what} does not take what the artifact has for it ({reason}); build it again"
        )

    def __call__(self, function: str, *inputs: np.ndarray) -> np.ndarray:
        """Run ``function`` on arrays of the manifest's shapes and dtypes. It must have one output."""
        names = [tensor.name for tensor in self.description.functions[function].inputs]
        return self.bind(function, **dict(zip(names, inputs, strict=True)))()

    def bind(self, function: str, **fixed: np.ndarray) -> Callable[..., np.ndarray]:
        """Return ``function`` of the inputs that are not ``fixed``, in their order. See ``prepare``."""
        prepared = self.prepare(function, **fixed)
        free = [tensor for tensor in self.description.functions[function].inputs if tensor.name not in fixed]

        def call(*inputs: np.ndarray) -> np.ndarray:
            pairs = zip(free, inputs, strict=True)
            return prepared(*(self._tensor(function, tensor, value) for tensor, value in pairs)).numpy()

        return call

    def prepare(self, function: str, **fixed: np.ndarray) -> Callable[..., tvm.runtime.Tensor]:
        """Return ``function`` of tensors on the device in place of the inputs that are not ``fixed``, in their order.

        The fixed ones are copied to the device here, and what depends on them only is computed here, once. Those that
        the function's context takes must be among them. On a GPU the call does not wait for its result.
        """
        description = self.description.functions[function]
        types = {tensor.name: tensor for tensor in description.inputs}
        kept = {name: self._tensor(function, types[name], value) for name, value in fixed.items()}
        cached: list[tvm.runtime.Tensor] = []
        order = list(types)
        if description.context is not None:
            names = [tensor.name for tensor in self.description.functions[description.context].inputs]
            cached = list(self._run(description.context, *(kept[name] for name in names)))
            order = [name for name in order if name not in names]

        def call(*tensors: tvm.runtime.Tensor) -> tvm.runtime.Tensor:
            free = iter(tensors)
            return self._run(function, *(kept[name] if name in kept else next(free) for name in order), *cached)

        return call

    def place(self, value: np.ndarray) -> tvm.runtime.Tensor:
        """Copy an array to the device."""
        return tvm.runtime.tensor(value, self.device)

    def _run(self, function: str, *tensors: tvm.runtime.Tensor) -> Any:
        """Call a function of the library with all parameters.

        Raises:
            UserError: it does not take them: the manifest or the parameter file is not the one it was built with. Or
                the GPU's memory ran out.
        """
        try:
            with undisturbed() if self._observed else contextlib.nullcontext(), self._around(function):
                return self._machine[function](*tensors, *self._parameters)
        except (ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise self._refused(function, error) from error

    def _tensor(self, function: str, expected: TensorType, value: np.ndarray) -> tvm.runtime.Tensor:
        """Copy an input to the device."""
        if value.shape != tuple(expected.shape) or value.dtype != expected.dtype:
            raise ValueError(
                f"{self.component}.{function}: {expected.name} must be {expected.dtype}{tuple(expected.shape)}, "
                f"not {value.dtype}{value.shape}"
            )
        return tvm.runtime.tensor(np.ascontiguousarray(value), self.device)

    @staticmethod
    def release() -> None:
        """Free the tensors' memory that TVM keeps for further calls, of all engines."""
        tvm.get_global_func("vm.builtin.memory_manager.clear")()

    def instrument(self, observer: Callable[..., object] | None, around: Around = _alone) -> None:
        """Have ``observer(function, name, before, result, *arguments)`` called around every kernel.

        Each function of the library is called within ``around(function)``. Ctrl-C then waits for the end of a
        function's call: the library can't be left from within an observer.
        """
        self._observed, self._around = observer is not None, around
        self._machine.set_instrument(observer)
