"""What decides a component, by name: while none of it changes, neither does the component.

All of it is found before torch or tvm is imported. What --disable leaves out is told apart: see ``compiler.cache``.
"""

from __future__ import annotations

import contextlib
import hashlib
from importlib.metadata import version
from pathlib import Path

from compiler.tuning.kind import INFO, kind_here, read_kind
from models.source import digests
from runtime.artifact import SCHEMA
from utils.command_line import flag_name
from utils.config import ROOT, BuildConfig
from utils.cpu import cache_sizes, cpu_name, host_instruction_sets, physical_cores
from utils.targets import NATIVE

VERSIONS = ("apache-tvm", "torch", "diffusers", "transformers")
SOURCES = ("compiler", "models")
TOUCHES = {
    "text_encoder": ("batch_size",),
    "unet": ("batch_size", "height", "width", "winograd_tile"),
    "vae_decoder": ("batch_size", "height", "width", "winograd_tile"),
}
ON_GPU = {"sampler": ("batch_size", "height", "width")}
REST = "artifact"  # what no component depends on, but the manifest does
Facts = dict[str, str]


def versions() -> dict[str, str]:
    """Return the versions of the libraries that decide what is built."""
    return {name: version(name) for name in VERSIONS}


def _target(config: BuildConfig) -> Facts:
    """Return what the code is for, and what it is verified on; not by the CPU's name, under which machines differ."""
    if config.gpu is not None:
        return {"--target": config.gpu}
    sets, sizes = host_instruction_sets(), cache_sizes()
    here = f"{cpu_name() if sets is None else ' '.join(sets)}, {physical_cores()} cores, {sizes}"
    if config.target.lstrip().startswith("{"):
        return {"--target": f"{config.target.strip()} on {here}"}
    return {"--cpu": f"{NATIVE if config.cpu is None else config.cpu} on {here}"}


def _sources() -> str:
    digest = hashlib.sha256()
    paths = (path for folder in SOURCES for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".cuh"))
    for path in sorted(paths):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _records(database: Path) -> str:
    """Return a digest of the records that were measured on a machine like this one."""
    digest, here = hashlib.sha256(), kind_here((), physical_cores())
    for path in sorted(database.glob(f"*/{INFO}")):
        if (kind := read_kind(path)) is not None and kind.is_like(here):
            for name in ("database_workload.json", "database_tuning_record.json"):
                with contextlib.suppress(OSError):
                    digest.update(path.with_name(name).read_bytes())
    return digest.hexdigest()


def _merging(config: BuildConfig) -> Facts:
    asked = config.merging
    if asked is None:
        return {"--apply-tome": "False"}
    strides = {"--tome-sy": str(asked.stride[0]), "--tome-sx": str(asked.stride[1])}
    merged = {"--tome-ratio": str(asked.ratio), "--tome-merge": ",".join(asked.parts)}
    return {"--apply-tome": "True", "--tome-max-downsample": str(asked.max_downsample), **merged, **strides}


def facts(config: BuildConfig) -> dict[str, Facts]:
    """Return the facts of each component, and under ``REST`` those of the artifact alone.

    Raises:
        UserError: the checkpoint can't be read.
    """
    model = digests(config.model)
    common = {
        **_target(config),
        "--dtype": config.precision,
        "sources of compiler/ and models/": _sources(),
        "records of --database-dir": "" if config.gpu else _records(config.database_dir),
        "library versions": " ".join([str(SCHEMA), *versions().values()]),
    }
    found = {REST: {"--model": model[REST]}}
    for component, names in (TOUCHES | (ON_GPU if config.gpu else {})).items():
        flags = {flag_name(name): str(getattr(config, name)) for name in names}
        flags |= _merging(config) if component == "unet" else {}
        part = "unet" if component in ON_GPU else component  # its latents are the UNet's
        found[component] = {"--model": model[part], **flags, **common}
    return found
