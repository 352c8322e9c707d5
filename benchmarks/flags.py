"""What benchmark.py measures."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from backends.peer import ON_CUDA, PEERS
from benchmarks.config import MAX_RUNS, check_file, names
from compiler.optimisations import chosen
from utils.command_line import existing_parent, flag
from utils.config import DEMO_CHECKPOINT, MAX_STEPS, BuildConfig, SamplingConfig
from utils.errors import UserError, choose
from utils.gpu import present_arch

MAX_RATIO = 0.75
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Which sections are measured, on what, how often, and where the figures go. Sizes are in pixels."""

    json: Path | None = flag(None, "file of the results, in a folder that exists", metavar="FILE")
    report: Path | None = flag(None, "folder of the report: index.html", metavar="DIR")
    model: str = flag(str(DEMO_CHECKPOINT), "checkpoint, as for build.py")
    backends: str | None = flag(
        None, f"pictures side by side: {', '.join(PEERS)} (default: all, or tvm where --ladder or the like is given)"
    )
    steps: int = flag(5, "denoising steps of a picture")
    scheduler_label: str | None = flag(None, "sampler, as for inference.py (default: the model's own)")
    resolutions: str | None = flag(
        None, "WIDTHxHEIGHT in pixels, separated by commas (default: the checkpoint's own)", metavar="WxH[,WxH]"
    )
    device: str = flag("cpu", "cpu or cuda, where every backend runs")
    dtype: str | None = flag(
        None, "float32 or bfloat16, on cuda float16 or bfloat16, of every backend (default: float32, on cuda float16)"
    )
    batch_size: int = flag(1, "pictures that a call makes at once; times are those of all of them")
    disable: str = flag("", "optimisations that our build leaves out, as for build.py", metavar="OPT[,OPT]")
    num_threads: int | None = flag(None, "CPU threads of every backend (default: the physical cores)")
    runs: int = flag(5, "measured runs of each, in turn")
    warmups: int = flag(1, "runs before them that are not counted")
    ladder: bool = flag(False, "the UNet from all optimisations off to all on, one more at a time")
    attention: bool = flag(False, "attention layers of the UNet: plain, fused softmax, flash")
    winograd: bool = flag(False, "3x3 convolutions of the UNet: direct and by F(m x m) of 2, 4, 6 and 8")
    throughput: int = flag(0, "seconds of pictures of 1 to N steps, and the line through them", metavar="N")
    latency_report: int = flag(0, "percentiles of N pictures", metavar="N")
    tome_sweep: str | None = flag(
        None, "ratios of merged tokens, 0 to 0.75, separated by commas", metavar="RATIO[,RATIO]"
    )
    enable_profiling: bool = flag(False, "where the time goes, of tvm and eager: kernels, roofs, a trace of both")
    judge_images: int = flag(0, "--tome-sweep: pictures a ratio that the demo model's judge scores", metavar="N")
    compare: tuple[Path, Path] | None = flag(
        None, "what became slower between two files of results? Exits with 1 if anything did", metavar=("OLD", "NEW")
    )
    work: Path = flag(Path("outputs/benchmark"), "folder of converted models and pictures, kept for the next run")

    def __post_init__(self) -> None:
        if self.compare is not None:
            return
        if choose("--device", self.device, DEVICES) == "cuda" and present_arch() is None:
            raise UserError("--device cuda: no GPU was found here; leave it out")
        names("--backends", self.backends or "tvm", self.peers)
        check_file(self.json)
        for name, value, low, high in (
            ("--runs", self.runs, 1, MAX_RUNS),
            ("--warmups", self.warmups, 0, MAX_RUNS),
            ("--throughput", self.throughput, 0, MAX_STEPS),
            ("--latency-report", self.latency_report, 0, 100_000),
            ("--judge-images", self.judge_images, 0, 100_000),
        ):
            if not low <= value <= high:
                raise UserError(f"{name} must be from {low} to {high}, not {value}")
        if self.throughput in (1, 2):
            raise UserError(f"--throughput {self.throughput}: no line goes through so few points; name 3 steps or more")
        if self.judge_images and self.tome_sweep is None:
            raise UserError("--judge-images does nothing without --tome-sweep; add it")
        self._check_folders()
        SamplingConfig(steps=self.steps, num_threads=self.num_threads, output_dir=self.work)
        for width, height in self.sizes:
            chosen(self._build_config(width, height))
        self.ratios  # noqa: B018 - refuses what is none
        self._check_sections()

    def _build_config(self, width: int | None = None, height: int | None = None) -> BuildConfig:
        """Return what our build is asked for; it refuses what can't be had."""
        return BuildConfig(
            model=self.model,
            target="llvm" if self.device == "cpu" else self.device,
            dtype=self.dtype,
            height=height,
            width=width,
            batch_size=self.batch_size,
            disable=self.disable,
            output_dir=self.work,
        )

    @property
    def precision(self) -> str:
        """What every backend computes in."""
        return self._build_config().precision

    @property
    def peers(self) -> list[str]:
        """The backends that run on the device."""
        return list(PEERS) if self.device == "cpu" else list(ON_CUDA)

    def _check_sections(self) -> None:
        """Refuse what a section would not heed."""
        if self.device != "cpu" and self.asks_for_sections:
            raise UserError(f"--device {self.device}: only pictures side by side are measured there")
        asked = {"--ladder": self.ladder, "--attention": self.attention, "--winograd": self.winograd}
        for name in (name for name, wanted in asked.items() if wanted):
            if self.precision != "float32":
                raise UserError(f"{name} has precisions of its own; leave --dtype {self.dtype} out")
        asked["--tome-sweep"] = self.tome_sweep is not None
        for name in (name for name, wanted in asked.items() if wanted and self.disable):
            raise UserError(f"{name} chooses optimisations itself; leave --disable out")
        for name in (name for name, wanted in {**asked, "--enable-profiling": self.enable_profiling}.items() if wanted):
            if self.batch_size > 1:
                raise UserError(f"{name} is of one picture at a time; leave --batch-size out")
        for name in (name for name, wanted in asked.items() if wanted):
            if len(self.sizes) > 1:
                raise UserError(f"{name} is of one size; name one in --resolutions")

    def _check_folders(self) -> None:
        for name, folder in (("--work", self.work), ("--report", self.report)):
            if folder is None:
                continue
            parent = existing_parent(folder)
            if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
                raise UserError(f"{name} {folder}: no folder can be made in {parent}")

    @property
    def asks_for_sections(self) -> bool:
        """Whether anything but pictures side by side is asked for."""
        asked = (self.ladder, self.attention, self.winograd, self.throughput, self.latency_report)
        return any(asked) or self.enable_profiling or self.tome_sweep is not None

    @property
    def backend_names(self) -> list[str]:
        """The backends that draw."""
        usual = "tvm" if self.asks_for_sections else ",".join(self.peers)
        return names("--backends", usual if self.backends is None else self.backends, self.peers)

    @property
    def compares_backends(self) -> bool:
        """Whether the section of pictures side by side is asked for."""
        return self.backends is not None or not self.asks_for_sections

    @property
    def sizes(self) -> list[tuple[int | None, int | None]]:
        """Width and height of each resolution, None for the checkpoint's own."""
        if self.resolutions is None:
            return [(None, None)]
        found: list[tuple[int | None, int | None]] = []
        for word in self.resolutions.split(","):
            width, _, height = word.strip().partition("x")
            if not (width.isdecimal() and height.isdecimal()):
                raise UserError(f"--resolutions {word.strip()!r} is no WIDTHxHEIGHT such as 512x512")
            found.append((int(width), int(height)))
        return found

    @property
    def ratios(self) -> list[float]:
        """The ratios of --tome-sweep, each once."""
        if self.tome_sweep is None:
            return []
        found = []
        for word in self.tome_sweep.split(","):
            try:
                ratio = float(word)
            except ValueError:
                raise UserError(f"--tome-sweep {word.strip()!r} is no number") from None
            if not (math.isfinite(ratio) and 0 <= ratio <= MAX_RATIO):
                raise UserError(f"--tome-sweep: ratios are from 0 to {MAX_RATIO}, not {word.strip()}")
            found.append(ratio)
        return list(dict.fromkeys(found))
