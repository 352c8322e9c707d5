"""The artifact on disk: a folder that describes itself in manifest.json.

Everything the runtime knows about a model comes from here. Reading checks schema, types and file sizes, and the digest
of each file whose size or time stamp is not the one that it was last checked with; ``verify`` checks all digests.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import utils.decoding
from utils.digests import known_digests, remember, sha256
from utils.errors import UserError

SCHEMA = 7
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class TensorType:
    """Name, shape and dtype of a function's input or output."""

    name: str
    shape: list[int]
    dtype: str


@dataclass(frozen=True)
class FunctionType:
    """Inputs (in order, before the parameters) and outputs of one compiled function.

    Where ``context`` names another function of the component, that one is to be called first, once for many calls. Its
    inputs, which are some of these, go to it; this function takes its outputs in their place, after the others.
    ``workspace`` is the memory in bytes that its tensors take while it runs, without inputs and parameters.
    """

    inputs: list[TensorType]
    outputs: list[TensorType]
    workspace: int
    context: str | None = None


@dataclass(frozen=True)
class File:
    """A file of the artifact: its path inside the folder, size in bytes and SHA-256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Packing:
    """How a packed parameter is made: library function ``function`` applied to the raw tensors ``sources``.

    An empty function name means that the one source is used as it is.
    """

    function: str
    sources: list[str]


@dataclass(frozen=True)
class Kernel:
    """A native function of a component: which kernel it is, what one call costs, and its calls by function.

    ``origin`` is the name of a kernel of ours, or "rule". ``flops`` are those of the operator that it stands for,
    ``bytes`` its inputs, weights and results, each moved once; see ``compiler.costs``.
    """

    origin: str
    flops: int
    bytes: int
    calls: dict[str, int]


@dataclass(frozen=True)
class Launch:
    """How the host launches a GPU kernel: the types of its arguments, and which launch parameters follow them."""

    arguments: list[str]
    parameters: list[str]


@dataclass(frozen=True)
class DeviceCode:
    """The kernels of a component for a GPU: their machine code (a cubin) and how each is launched, by symbol."""

    code: File
    launches: dict[str, Launch]


@dataclass(frozen=True)
class Component:
    """One compiled part: functions x shapes over one parameter file.

    Every function takes its inputs, then all parameters in the order of ``packing``. ``psnr`` is in dB against PyTorch,
    per function; ``kernels`` has the native functions that these call, by symbol; ``time_share`` the share of estimated
    time by record, kernel and rule. ``build_seconds`` were spent on tracing, compiling, writing and verifying it, in
    whichever build that was. ``optimisations`` names those that changed it, and ``facts`` what else decided it:
    both tell whether it has to be built anew.

    For a GPU, ``library`` holds what the host does and ``device`` the kernels. ``psnr`` and ``time_share`` are empty
    where the build's machine could not run it, a GPU or CPU that was not there; ``references`` has inputs and PyTorch's
    outputs, which the first run where it can compares.
    """

    library: File
    parameters: File
    packing: dict[str, Packing]
    functions: dict[str, FunctionType]
    kernels: dict[str, Kernel]
    psnr: dict[str, float]
    time_share: dict[str, float]
    raw_bytes: int
    build_seconds: float
    optimisations: list[str]
    facts: dict[str, str]
    device: DeviceCode | None = None
    references: File | None = None

    def files(self) -> list[File]:
        """Return the files of the component."""
        others = [None if self.device is None else self.device.code, self.references]
        return [self.library, self.parameters, *(file for file in others if file is not None)]

    def flops(self, function: str) -> int:
        """Return the FLOPs of one call of ``function``, without those of its context."""
        return sum(kernel.flops * kernel.calls.get(function, 0) for kernel in self.kernels.values())


@dataclass(frozen=True)
class Manifest:
    """All of manifest.json. Sizes in pixels; ``latent_scale`` is pixels per latent pixel; ``facts``: see Component.

    ``token_merging`` tells ratio, parts, max_downsample and stride where the UNet merges tokens.
    """

    schema: int
    model_name: str
    model_digest: str
    default_prompt: str | None
    target: dict[str, Any]
    cpu_features: list[str]
    dtype: str
    height: int
    width: int
    batch_size: int
    latent_channels: int
    latent_scale: int
    vae_scaling_factor: float
    scheduler: dict[str, Any]
    tokenizer: File
    components: dict[str, Component]
    optimisations: dict[str, bool]
    token_merging: dict[str, Any] | None
    versions: dict[str, str]
    facts: dict[str, str]

    @property
    def on_gpu(self) -> bool:
        """Whether the components run on a GPU."""
        return self.target.get("kind") == "cuda"


def decode(kind: Any, value: Any, where: str) -> Any:
    """Turn parsed JSON of a manifest into ``kind``.

    Raises:
        UserError: it is not of that type; where.
    """
    return utils.decoding.decode(kind, value, f"{MANIFEST}: {where}", "build the artifact again")


def _check_functions(component: str, description: Component) -> None:
    """Check that every function gives something, and that what it takes from another function is there."""
    for name, function in description.functions.items():
        where = f"{MANIFEST}: manifest.components.{component}.functions.{name}"
        if not function.outputs:
            raise UserError(f"{where} has no outputs; build the artifact again")
        if function.context is None:
            continue
        context = description.functions.get(function.context)
        if context is None or context.context is not None or any(t not in function.inputs for t in context.inputs):
            raise UserError(f"{where} can't take its context from {function.context!r}; build the artifact again")


class Artifact:
    """A checked artifact folder.

    Raises:
        UserError: the folder is missing or empty, of another schema, or a file is missing, cut short or outside of it.
    """

    def __init__(self, folder: Path, verify: bool = False) -> None:
        self.folder = Path(folder)
        self.manifest = self._read_manifest()
        for name, component in self.manifest.components.items():
            _check_functions(name, component)
        for file in self.files():
            self._check_file(file)
        self._check_digests(verify)

    def _read_manifest(self) -> Manifest:
        path = self.folder / MANIFEST
        if not path.is_file():
            raise UserError(f"--artifacts-dir {self.folder}: no {MANIFEST} there; run build.py --output-dir first")
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError, RecursionError) as error:
            raise UserError(f"{path} can't be read ({error}); build the artifact again") from None
        schema = value.get("schema") if isinstance(value, dict) else None
        if schema != SCHEMA:
            raise UserError(f"{path} has schema {schema!r}, this version reads {SCHEMA}; build the artifact again")
        return decode(Manifest, value, "manifest")

    def files(self) -> list[File]:
        """Return every file that the manifest names."""
        components = self.manifest.components.values()
        return [self.manifest.tokenizer, *(file for component in components for file in component.files())]

    def _check_file(self, file: File) -> None:
        path = self.folder / file.path
        try:
            if not path.resolve().is_relative_to(self.folder.resolve()):
                raise UserError(f"{self.folder / MANIFEST}: the path {file.path!r} leaves the artifact's folder")
            there, size = path.is_file(), path.stat().st_size if path.exists() else 0
        except (OSError, ValueError, RuntimeError) as error:  # no name at all, a circle of links, a folder that is shut
            raise UserError(f"{self.folder / MANIFEST}: the artifact's {file.path!r} can't be used ({error})") from None
        if not there:
            raise UserError(f"{path} is missing; build the artifact again")
        if size != file.size:
            raise UserError(f"{path} has {size} bytes instead of {file.size}; build the artifact again")

    def _check_digests(self, verify: bool) -> None:
        files = {self.folder / file.path: file for file in self.files()}
        try:
            if verify:
                found = {path: sha256(path) for path in files}
                remember(found)
            else:
                found = known_digests(list(files))
        except OSError as error:
            raise UserError(f"{error.filename} can't be read ({error.strerror}); build the artifact again") from None
        for path, digest in found.items():
            if digest != files[path].sha256:
                raise UserError(f"{path} was altered (its digest differs); build the artifact again")

    def path(self, file: File) -> Path:
        """Return where ``file`` lies."""
        return self.folder / file.path


def describe(path: Path, folder: Path, digest: str | None = None) -> File:
    """Return the manifest's entry for the file ``path`` inside ``folder``, whose SHA-256 may be known already."""
    return File(path.relative_to(folder).as_posix(), path.stat().st_size, digest or sha256(path))


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write manifest.json into ``folder``, whole or not at all."""
    text = json.dumps(dataclasses.asdict(manifest), indent=1, ensure_ascii=False, allow_nan=False)
    temporary = folder / f".{MANIFEST}"
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(folder / MANIFEST)
