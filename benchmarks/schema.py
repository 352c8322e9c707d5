"""The file that benchmark.py writes, and that a later run is compared with: JSON of the dataclasses below.

Seconds of a list are those of each run, in order; all backends have theirs in the same rounds. Memory is in bytes, PSNR
in dB. A section that was not asked for is an empty list.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.profile import Profile
from utils.decoding import decode
from utils.errors import UserError
from utils.files import write_whole

SCHEMA = 2
ADVICE = "make it again with benchmark.py --json"


@dataclass(frozen=True)
class Environment:
    """Where it ran. ``commit`` is the project's, with ``+`` where files differed from it; ``date`` is ISO 8601, UTC."""

    cpu: str
    features: list[str]
    cores: int
    threads: int
    memory: int | None
    system: str
    python: str
    versions: dict[str, str | None]
    commit: str | None
    date: str


@dataclass(frozen=True)
class Backend:
    """One backend's pictures, or the reason why it made none.

    ``prepare_seconds`` are by stage: export, convert, build, compile, load. ``size`` is that of its files. ``psnr`` is
    the picture's against the reference, diffusers in float32. ``ours_seconds`` are our totals in the same rounds;
    ``ratio`` is ours to this backend's, the median over the rounds, ``ratio_interval`` holds it with 95 % confidence.
    ``iterations_per_second`` are steps, those of each picture of a batch. ``picture`` is a path relative to the file.
    ``resolution`` is ``WIDTHxHEIGHT`` in pixels.
    """

    name: str
    resolution: str = ""
    skipped: str | None = None
    prepare_seconds: dict[str, float] = field(default_factory=dict)
    first_picture_seconds: float | None = None
    total_seconds: list[float] = field(default_factory=list)
    text_seconds: list[float] = field(default_factory=list)
    unet_seconds: list[float] = field(default_factory=list)
    vae_seconds: list[float] = field(default_factory=list)
    iterations_per_second: float | None = None
    peak_memory: int | None = None
    size: int | None = None
    psnr: float | None = None
    ours_seconds: list[float] = field(default_factory=list)
    ratio: float | None = None
    ratio_interval: list[float] | None = None
    picture: str | None = None


@dataclass(frozen=True)
class Rung:
    """The UNet with one more optimisation than the rung before; the first has none.

    ``unet_seconds`` are of all steps of a picture, ``before_seconds`` those of the rung before in the same rounds.
    ``step_ratio`` is to the rung before, ``ratio`` the product of all up to here. ``psnr`` is the UNet's against
    PyTorch in float32. ``skipped`` tells why a rung was left out; the next is compared with the one before it then.
    """

    name: str
    unet_seconds: list[float] = field(default_factory=list)
    before_seconds: list[float] = field(default_factory=list)
    ratio: float | None = None
    step_ratio: float | None = None
    parameters: int | None = None
    workspace: int | None = None
    psnr: float | None = None
    skipped: str | None = None


@dataclass(frozen=True)
class AttentionRow:
    """One attention layer's shape, computed in one way: plain, softmax (in one pass over stored scores) or flash.

    ``calls`` of the UNet with guidance. ``memory`` is that of the tensors beside inputs and outputs, ``gflops`` are 1e9
    multiplies and adds a second, ``psnr`` is against PyTorch in float64.
    """

    layer: str
    heads: int
    queries: int
    keys: int
    head_dim: int
    calls: int
    method: str
    seconds: list[float]
    memory: int
    gflops: float
    psnr: float


@dataclass(frozen=True)
class WinogradRow:
    """One 3x3 convolution: direct, in tile registers, there by F(2 x 2), or by F(m x m), whose m is the method.

    ``calls`` of the UNet with guidance. ``gflop`` are 1e9 multiplies and adds of its products, without transforms;
    ``memory`` is that of packed weights and of tensors beside inputs and outputs, ``psnr`` is against float64.
    """

    layer: str
    channels: int
    filters: int
    height: int
    width: int
    calls: int
    method: str
    seconds: list[float]
    gflop: float
    memory: int
    psnr: float


@dataclass(frozen=True)
class Throughput:
    """Seconds of pictures of 1 to N steps, and the line through them: start cost and cost a step.

    ``interval`` holds the cost a step with 95 % confidence.
    """

    name: str
    resolution: str
    steps: list[int]
    seconds: list[float]
    start_seconds: float
    step_seconds: float
    interval: list[float]
    r2: float


@dataclass(frozen=True)
class Latency:
    """Seconds of many pictures of one backend, and their percentiles."""

    name: str
    resolution: str
    seconds: list[float]
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True)
class TomeRow:
    """A ratio of merged tokens. ``attention`` is flash or plain of ours, sdpa or math of diffusers (``name``).

    ``plain_seconds`` are the UNet's at ratio 0 in the same rounds, ``unet_ratio`` the median of the pairs' ratios.
    ``accuracy`` (the mean of the demo judge's four) and ``frechet`` are None where they were not asked for.
    """

    name: str
    resolution: str
    ratio: float
    attention: str
    unet_seconds: list[float]
    plain_seconds: list[float]
    unet_ratio: float
    total_seconds: list[float]
    psnr_to_plain: float | None
    accuracy: float | None
    frechet: float | None
    frechet_interval: list[float] | None
    picture: str | None


@dataclass(frozen=True)
class ProfileRow:
    """Where the time of a picture goes, of its heaviest kernels only; ``skipped`` tells why nothing is known."""

    name: str
    resolution: str
    skipped: str | None = None
    profile: Profile | None = None


@dataclass(frozen=True)
class Results:
    """The whole file."""

    environment: Environment
    settings: dict[str, Any]
    schema: int = SCHEMA
    backends: list[Backend] = field(default_factory=list)
    ladder: list[Rung] = field(default_factory=list)
    attention: list[AttentionRow] = field(default_factory=list)
    winograd: list[WinogradRow] = field(default_factory=list)
    throughput: list[Throughput] = field(default_factory=list)
    latency: list[Latency] = field(default_factory=list)
    tome_sweep: list[TomeRow] = field(default_factory=list)
    profiles: list[ProfileRow] = field(default_factory=list)


def read(path: Path) -> Results:
    """Read a file of results.

    Raises:
        UserError: it is missing, no JSON, cut short or of another schema.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path} can't be read ({error}); {ADVICE}") from None
    schema = value.get("schema") if isinstance(value, dict) else None
    if schema != SCHEMA:
        raise UserError(f"{path} has schema {schema!r}, this version reads {SCHEMA}; {ADVICE}")
    return decode(Results, value, str(path), ADVICE)


def write(results: Results, path: Path) -> None:
    """Write a file of results, whole or not at all."""
    write_whole(path, json.dumps(dataclasses.asdict(results), indent=1, allow_nan=False) + "\n")
