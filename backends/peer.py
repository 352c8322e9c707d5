"""The interface of the peers: one way to run a component, in a process of its own (``backends.worker``)."""

from __future__ import annotations

import hashlib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from utils.cpu import host_instruction_sets
from utils.memory import peak_memory

PEERS = {  # their classes
    "eager": "Eager",
    "compile": "Compiled",
    "onnxruntime": "OnnxRuntime",
    "openvino": "OpenVino",
    "tvm": "Tvm",
}
MODULES = {"compile": "compiled"}  # where a module is not called as its peer
CONVERTED = ("onnxruntime", "openvino", "tvm")  # those that prepare something on disk, once for many runs
FUNCTIONS = {"unet": "guided", "vae_decoder": "decode", "text_encoder": "encode"}  # what a call of a component is
COMMAND = "command"  # the fourth "component": a whole picture, from the command line
PICTURE = "picture"  # and the fifth: a whole picture, drawn by a loaded pipeline
PROMPT, SEED, GUIDANCE_SCALE = "a lighthouse on a cliff at sunset", 0, 7.5
DTYPES = ("float32", "bfloat16")
ON_CUDA = ("eager", "compile", "tvm")  # those that run on a GPU too
INPUTS, REFERENCE = "inputs.npz", "reference.npy"
BFLOAT16_SETS = {"avx512bf16", "amxbf16", "bf16"}


@dataclass(frozen=True, eq=False)
class Drawn:
    """Pictures made at once, uint8 [N, H, W, 3], and their seconds; the UNet's are those of the whole loop."""

    pictures: np.ndarray
    text_seconds: float
    unet_seconds: float
    vae_seconds: float


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all peers share. Sizes are in pixels; None is the model's own.

    ``folder`` holds what is kept between runs: inputs, references, converted models. ``steps`` are those of a picture,
    and without a ``scheduler_label`` its sampler is the model's own. ``attention`` is diffusers', ``disable`` what our
    build leaves out, ``tome_ratio`` the share of tokens that both merge, ``batch_size`` the pictures made at once.
    ``device`` is cpu or cuda; references are made on the CPU.
    """

    model: str
    dtype: str
    height: int | None
    width: int | None
    num_threads: int
    steps: int
    folder: Path
    artifacts_dir: Path | None
    scheduler_label: str | None = None
    attention: str = "sdpa"
    tome_ratio: float | None = None
    disable: str = ""
    batch_size: int = 1
    device: str = "cpu"
    model_digest: str = ""  # filled in with ``folder`` by backends.reference, as is the next
    model_bytes: int = 0  # of its parameters in float32

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON can hold them."""
        return {key: str(value) if isinstance(value, Path) else value for key, value in vars(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Settings:
        """Return the settings of ``to_json``."""
        folders = {key: Path(values[key]) for key in ("folder", "artifacts_dir") if values[key] is not None}
        return cls(**{**values, **folders})

    @property
    def variant(self) -> str:
        """What is run of the model, as part of a file's name."""
        words = [self.dtype] if self.device == "cpu" else [self.dtype, self.device]
        words += [] if self.attention == "sdpa" else [self.attention]
        words += [] if self.tome_ratio is None else [f"tome-{self.tome_ratio:g}"]
        words += [] if self.batch_size == 1 else [f"batch-{self.batch_size}"]
        words += [f"without-{hashlib.sha256(self.disable.encode()).hexdigest()[:8]}"] if self.disable else []
        return "-".join(words)

    @property
    def artifact(self) -> Path:
        """The folder of our artifact."""
        return self.folder / f"artifact-{self.variant}" if self.artifacts_dir is None else self.artifacts_dir

    def component_folder(self, component: str) -> Path:
        """Return the folder of a component's inputs and reference."""
        if component not in (COMMAND, PICTURE):
            return self.folder / component
        sampler = "" if self.scheduler_label is None else f"-{self.scheduler_label}"
        batch = "" if self.batch_size == 1 else f"-batch-{self.batch_size}"
        return self.folder / f"{component}-{self.steps}-steps{sampler}{batch}"

    def output_folder(self, component: str, peer: str) -> Path:
        """Return the folder of what a peer makes of a component."""
        return self.component_folder(component) / f"{peer}-{self.variant}"

    def inputs(self, component: str) -> dict[str, np.ndarray]:
        """Return the inputs by name, in the order of the call, as ``backends.reference`` drew them."""
        if component in (COMMAND, PICTURE):
            return {}
        with np.load(self.component_folder(component) / INPUTS, allow_pickle=False) as file:
            return dict(file)

    def reference(self, component: str) -> np.ndarray:
        """Return what diffusers makes of the inputs in float32: a tensor; a picture, uint8 [H, W, 3], of the command;
        the pictures of all seeds, [N, H, W, 3].
        """
        return np.load(self.component_folder(component) / REFERENCE, allow_pickle=False)


class Peer(ABC):
    """One backend with its settings. A process makes one peer, prepares one component and runs it many times."""

    name: ClassVar[str]

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def unavailable(self) -> str | None:
        """Return why this peer can't run here, None when it can."""
        host = host_instruction_sets() if self.settings.device == "cpu" else None
        if self.settings.dtype == "bfloat16" and host is not None and not BFLOAT16_SETS.intersection(host):
            return "this CPU has no bfloat16 instructions (avx512_bf16 or AMX)"
        return None

    def convert(self, components: Sequence[str]) -> None:
        """Put on disk what ``prepare`` loads, unless it is there. Only for the peers that ``CONVERTED`` names.

        Raises:
            UserError: it can't be made; the reason.
        """
        raise NotImplementedError(f"{self.name} keeps nothing on disk")

    @abstractmethod
    def prepare(self, component: str) -> dict[str, float]:
        """Load and compile a component. Returns seconds by stage, those of the conversion too.

        Raises:
            UserError: this peer can't run the component; the reason.
        """

    @abstractmethod
    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Call the component once, on inputs as ``backends.reference`` stores them. Returns float32 or uint8."""

    def draw(self, seed: int, steps: int) -> Drawn:
        """Draw ``batch_size`` pictures of seeds from ``seed`` on, by what was prepared as ``PICTURE``.

        The prompt is encoded anew.

        Raises:
            UserError: it has NaN or Inf, or the sampler can't make so many steps.
        """
        raise NotImplementedError(f"{self.name} draws no pictures")

    def size(self) -> int | None:
        """Return the bytes of the files that are kept for this peer, None where it has none of its own."""
        return None

    def peak_memory(self) -> int | None:
        """Return the largest resident size so far, in bytes."""
        return peak_memory()


def load(name: str, settings: Settings) -> Peer:
    """Make the peer called ``name``."""
    module = importlib.import_module(f"backends.{MODULES.get(name, name)}")
    return getattr(module, PEERS[name])(settings)
