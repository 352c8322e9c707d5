"""What the scripts are asked to do: one frozen dataclass each, validated once, where it is made."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from pathlib import Path

from utils.command_line import existing_parent, flag, flag_name
from utils.errors import UserError, choose
from utils.gpu import ARCHS
from utils.targets import gpu_arch, precision

ROOT = Path(__file__).resolve().parent.parent
DEMO_CHECKPOINT = ROOT / "demo" / "checkpoint"
DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("float32", "float16", "bfloat16")
WINOGRAD_TILES = ("2", "4", "6")
TOME_PARTS = ("attn", "crossattn", "mlp")
ATTENTIONS = ("math", "sdpa", "xformers")
MAX_STEPS = 1000
MAX_SIZE = 8192
MAX_MINUTES = 10_000
MAX_TRIALS = 1_000_000


def _check_range(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:  # NaN compares false and is refused too
        raise UserError(f"{name} must be from {low} to {high}, not {value}")


def _check_size(name: str, value: int | None) -> None:
    if value is not None and (value < 8 or value > MAX_SIZE or value % 8):
        raise UserError(f"{name} must be a multiple of 8 from 8 to {MAX_SIZE} pixels, not {value}")


def _check_writable(name: str, folder: Path) -> None:
    parent = existing_parent(folder)
    if not parent.is_dir():
        raise UserError(f"{name} {folder}: {parent} is a file, not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{name} {folder}: no permission to write in {parent}")


def _check_picture_name(name: str) -> None:
    path = Path(name)
    if path.suffix.lower() != ".png":
        raise UserError(f"--output-image {name}: the name must end in .png")
    if path.name != name:
        raise UserError(f"--output-image {name}: a file name without folders, which --output-dir names")


@dataclass(frozen=True)
class TokenMerging:
    """Which share of tokens is merged before which parts of a block, down to which level; a cell is ``stride`` (y, x).

    ``max_downsample`` 1 takes the blocks at the latent's own size only, 2 those at half of it too, and so on.
    """

    ratio: float = 0.5
    parts: tuple[str, ...] = ("attn",)
    max_downsample: int = 1
    stride: tuple[int, int] = (2, 2)


def _check_tome(config: BuildConfig | BaselineConfig) -> None:
    _check_range("--tome-ratio", config.tome_ratio, 0, 0.75)
    flags = [field.name for field in dataclasses.fields(config) if field.name.startswith("tome_")]
    given = [flag_name(name) for name in flags if getattr(config, name) is not None]
    if given and not config.apply_tome:
        raise UserError(f"{given[0]} does nothing without --apply-tome; add it, or leave {given[0]} out")


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """What build.py compiles. Sizes are in pixels of the picture."""

    model: str = flag(
        str(DEMO_CHECKPOINT),
        "checkpoint: a folder in the diffusers layout, a single .safetensors file, a hub id, or random:tiny|sd15|sd21 "
        "for seeded random weights",
    )
    target: str = flag("auto", "auto (cuda where a GPU is present, else llvm), llvm, cuda, or a TVM target as JSON")
    cpu: str | None = flag(
        None,
        "CPU that code is for: native (the one that is here), x86-64-v2, x86-64-v3 (AVX2), x86-64-v4 (AVX-512), or "
        "LLVM's name of one, which need not be here (default: native)",
        metavar="NAME",
    )
    cuda_arch: str | None = flag(
        None, f"architecture of the GPU that code is for: {', '.join(ARCHS)} (default: the one that is here)"
    )
    output_dir: Path = flag(Path("artifacts"), "folder of the artifact")
    height: int | None = flag(None, "height in pixels, a multiple of 8 (default: the checkpoint's own)")
    width: int | None = flag(None, "width in pixels, a multiple of 8 (default: the checkpoint's own)")
    batch_size: int = flag(1, "pictures made by one call")
    disable: str = flag("", "optimisations to leave out, separated by commas, or all", metavar="OPT[,OPT]")
    dtype: str | None = flag(
        None,
        "on a CPU float32, or bfloat16 where it has AMX, which halves the weights, or avx512_bf16, where 3x3 "
        "convolutions stay in float32 if that is faster; on cuda float16 or bfloat16 (default: float32, on cuda "
        "float16)",
    )
    winograd_tile: int | None = flag(None, "2, 4 or 6: 3x3 convolutions by F(m x m) (default: where and as it pays)")
    apply_tome: bool = flag(False, "merge similar tokens before self-attention: faster, at a cost in quality")
    tome_ratio: float | None = flag(None, "share of tokens to merge, 0 to 0.75 (default: 0.5)")
    tome_merge: str | None = flag(
        None, "before what: attn, crossattn, mlp, separated by commas (default: attn)", metavar="PART[,PART]"
    )
    tome_max_downsample: int | None = flag(
        None, "deepest level: 1 is the latent's own size, 2 half of it, then 4 and 8 (default: 1)"
    )
    tome_sx: int | None = flag(None, "a token in each cell of --tome-sx x --tome-sy takes others in (default: 2)")
    tome_sy: int | None = flag(None, "height of a cell in tokens (default: 2)")
    database_dir: Path = flag(Path("scheduler_db"), "folder of tuning records, one folder a kind of machine")
    tune_minutes: float = flag(0.0, "minutes to tune the kernels first; 0: none")
    tune_trials: int = flag(0, "candidates to measure at most; 0: no limit")
    tracker: str | None = flag(
        None,
        "RPC tracker on whose servers candidates are timed; these run whatever they are sent",
        metavar="HOST:PORT",
    )
    num_threads: int | None = flag(None, "threads of tuning and parity check (default: the physical cores)")
    enable_cache: int = flag(1, "1: take components again that nothing changed for; 0: build all")
    no_wait: bool = flag(False, "fail at once where another build writes to the same folder, rather than wait for it")
    enable_debug: bool = flag(False, "write the IR after each pass, numbered, to debug/<component>/ in the artifact")

    def __post_init__(self) -> None:
        _check_size("--height", self.height)
        _check_size("--width", self.width)
        _check_range("--batch-size", self.batch_size, 1, 64)
        precision(self.gpu, self.dtype)
        self._check_kernels()
        self._check_merging()
        if self.database_dir.exists() and not self.database_dir.is_dir():
            raise UserError(f"--database-dir {self.database_dir} is a file; name a folder")
        _check_range("--tune-minutes", self.tune_minutes, 0, MAX_MINUTES)
        _check_range("--tune-trials", self.tune_trials, 0, MAX_TRIALS)
        if self.tracker is not None and not self.tunes:
            raise UserError("--tracker does nothing without --tune-minutes or --tune-trials; add one of them")
        _check_range("--num-threads", self.num_threads, 1, 1024)
        choose("--enable-cache", str(self.enable_cache), ("0", "1"))
        _check_writable("--output-dir", self.output_dir)

    @property
    def gpu(self) -> str | None:
        """The architecture of the GPU that code is made for, as in "sm_90", or None where it is for a CPU."""
        return gpu_arch(self.target, self.cuda_arch, self.cpu)

    @property
    def precision(self) -> str:
        """What multiplies are computed in."""
        return precision(self.gpu, self.dtype)

    @property
    def tunes(self) -> bool:
        """Whether any time or trial is given to tuning."""
        return self.tune_minutes > 0 or self.tune_trials > 0

    def _check_kernels(self) -> None:
        if self.winograd_tile is not None:
            choose("--winograd-tile", str(self.winograd_tile), WINOGRAD_TILES)
        for name, given in (("--winograd-tile", self.winograd_tile is not None), ("--tune-minutes", self.tunes)):
            if given and self.gpu is not None:
                raise UserError(f"{name} does nothing for cuda in this version; leave it out, or use --target llvm")

    def _tome_parts(self) -> list[str]:
        return [part.strip() for part in ("attn" if self.tome_merge is None else self.tome_merge).split(",")]

    def _check_merging(self) -> None:
        _check_tome(self)
        for part in self._tome_parts():
            choose("--tome-merge", part, TOME_PARTS)
        if self.tome_max_downsample is not None:
            choose("--tome-max-downsample", str(self.tome_max_downsample), ("1", "2", "4", "8"))
        for name, stride in (("--tome-sx", self.tome_sx), ("--tome-sy", self.tome_sy)):
            _check_range(name, stride, 1, 64)
        if self.tome_sx == self.tome_sy == 1:
            raise UserError("--tome-sx 1 and --tome-sy 1 leave no token to merge; make one of them 2 or more")

    @property
    def merging(self) -> TokenMerging | None:
        """What --apply-tome and its flags ask for."""
        if not self.apply_tome:
            return None
        usual = TokenMerging()
        return TokenMerging(
            usual.ratio if self.tome_ratio is None else self.tome_ratio,
            tuple(part for part in TOME_PARTS if part in self._tome_parts()),
            usual.max_downsample if self.tome_max_downsample is None else self.tome_max_downsample,
            (
                usual.stride[0] if self.tome_sy is None else self.tome_sy,
                usual.stride[1] if self.tome_sx is None else self.tome_sx,
            ),
        )


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """What both inference scripts share: a prompt and how to sample it."""

    prompt: str | None = flag(None, "what to draw (default: the model's own example)")
    negative_prompt: str = flag("", "what to keep away from")
    scheduler_label: str | None = flag(
        None, "ddim, pndm, euler, euler-ancestral or dpmpp-2m; diffusers and A1111 names too (default: the model's own)"
    )
    steps: int = flag(20, "denoising steps, 1 to 1000")
    guidance_scale: float = flag(7.5, "classifier-free guidance; 1 or less turns it off")
    seed: int | None = flag(None, "seed of the first picture, 0 to 2^64-1 (default: drawn, printed and stored)")
    num_images: int = flag(1, "pictures to make; picture i has the seed --seed + i")
    num_threads: int | None = flag(None, "CPU threads (default: the physical cores)")
    output_dir: Path = flag(Path("outputs"), "folder of the pictures")
    output_image: str | None = flag(None, "file name of the picture (default: made from number, seed and prompt)")
    enable_profiling: bool = flag(
        False, "print where the time goes, by kernel and step, and write profile and trace beside the first picture"
    )

    def __post_init__(self) -> None:
        _check_range("--steps", self.steps, 1, MAX_STEPS)
        _check_range("--guidance-scale", self.guidance_scale, 0, 1000)
        _check_range("--num-images", self.num_images, 1, 100_000)
        _check_range("--num-threads", self.num_threads, 1, 1024)
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise UserError(f"--seed must be from 0 to 2^64-1, not {self.seed}")
        if not math.isfinite(self.guidance_scale):
            raise UserError(f"--guidance-scale must be a finite number, not {self.guidance_scale}")
        if self.output_image is not None:
            _check_picture_name(self.output_image)
        _check_writable("--output-dir", self.output_dir)


@dataclass(frozen=True, kw_only=True)
class RunConfig(SamplingConfig):
    """What inference.py runs."""

    device: str = flag("auto", "auto, cpu or cuda")
    artifacts_dir: Path = flag(Path("artifacts"), "folder that build.py wrote")
    verify: bool = flag(False, "check the digest of every file of the artifact before it is used")
    enable_debug: bool = flag(
        False, "print each step's timestep, sigma, latent range, NaN count and seconds as JSON, and where a NaN began"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("--device", self.device, DEVICES)


@dataclass(frozen=True, kw_only=True)
class BaselineConfig(SamplingConfig):
    """What inference_basic_sd.py runs through diffusers."""

    model: str = flag(str(DEMO_CHECKPOINT), "checkpoint, as for build.py")
    device: str = flag("auto", "auto, cpu or cuda")
    dtype: str = flag("float32", "float32, float16 or bfloat16")
    height: int | None = flag(None, "height in pixels, a multiple of 8 (default: the checkpoint's own)")
    width: int | None = flag(None, "width in pixels, a multiple of 8 (default: the checkpoint's own)")
    attention: str = flag("sdpa", "math (scores stored), sdpa or xformers")
    compile: bool = flag(False, "compile the UNet with torch.compile")
    apply_tome: bool = flag(False, "merge tokens with tomesd")
    tome_ratio: float | None = flag(None, "share of tokens to merge with --apply-tome, 0 to 0.75 (default: 0.5)")

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("--device", self.device, DEVICES)
        choose("--dtype", self.dtype, DTYPES)
        choose("--attention", self.attention, ATTENTIONS)
        _check_size("--height", self.height)
        _check_size("--width", self.width)
        _check_tome(self)
