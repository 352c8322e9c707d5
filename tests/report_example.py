"""Results of every section with their pictures and a trace, made up, for the tests of the report."""

import random
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.schema import (
    AttentionRow,
    Backend,
    Environment,
    Latency,
    ProfileRow,
    Results,
    Rung,
    Throughput,
    TomeRow,
    WinogradRow,
)
from runtime.profile import AverageStep, Component, Kernel, Profile, Subject
from runtime.roofline import Peak

SIZE = "512x512"
SPEED = {"diffusers": 8.2, "torch.compile": 7.7, "openvino": 6.8, "tvm": 2.7, "tvm-bfloat16": 1.17}
RUNGS = {
    "none": 1.0,
    "layout": 0.81,
    "fusion": 0.70,
    "packed_weights": 0.49,
    "winograd": 0.44,
    "flash_attention": 0.36,
    "fused_groupnorm": 0.345,
    "fused_softmax": 0.35,
    "tuned": 0.31,
}


def environment() -> Environment:
    return Environment(
        cpu="Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
        features=["avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16"],
        cores=2,
        threads=2,
        memory=16_700_000_000,
        system="Linux 6.1 x86_64",
        python="3.11.7",
        versions={"apache-tvm": "0.27.0.post1", "torch": "2.13.0", "diffusers": "0.42.1", "openvino": None},
        commit="ec8ae82+",
        date="2026-11-22T04:08:05+00:00",
    )


def example(base: Path) -> Results:
    """Return results of every section; their pictures and a trace are written into ``base``."""
    dice = random.Random(7)  # noqa: S311 - the same figures each time
    (base / "traces").mkdir(parents=True)
    (base / "traces" / f"{SIZE}.json").write_text("{}")
    (base / "traces" / "another run.json").write_text("{}")
    return Results(
        environment=environment(),
        settings={
            "model": "random:sd15",
            "dtype": "float32",
            "steps": 20,
            "height": 512,
            "width": 512,
            "prompt": "a red fox in the snow",
            "backends": [*SPEED],
            "guidance_scale": 7.5,
            "tome": True,
            "tracker": None,
        },
        backends=[
            *_backends(dice, base),
            Backend("onnxruntime", SIZE, skipped="not installed: pip install onnxruntime"),
        ],
        ladder=_ladder(dice),
        attention=_attention(dice),
        winograd=_winograd(dice),
        throughput=_throughput(dice),
        latency=_latency(dice),
        tome_sweep=_tome(dice, base),
        profiles=[_profile(dice, name) for name in ("diffusers", "tvm")],
    )


def draw(path: Path, noise: float) -> str:
    """Write a picture of a sphere on a plain, farther from the original the more ``noise``; return its name."""
    y, x = np.mgrid[0:256, 0:256] / 255
    sky = np.stack([0.35 + 0.4 * y, 0.55 + 0.25 * y, 0.9 - 0.3 * y], -1)
    ground = np.stack([0.75 - 0.4 * y, 0.6 - 0.2 * y, 0.35 + 0 * y], -1)
    inside = (x - 0.5) ** 2 + (y - 0.55) ** 2 < 0.06
    light = np.clip(1.2 - 2.6 * np.hypot(x - 0.42, y - 0.45), 0.1, 1)[..., None]
    scene = np.where(inside[..., None], light * [0.9, 0.3, 0.2], np.where((y > 0.65)[..., None], ground, sky))
    scene = scene + noise * np.random.default_rng(1).standard_normal(scene.shape) * inside[..., None]
    Image.fromarray((255 * np.clip(scene, 0, 1)).astype(np.uint8)).save(path)
    return path.name


def _runs(dice: random.Random, seconds: float, count: int = 7) -> list[float]:
    return [seconds * (1 + abs(dice.gauss(0, 0.012))) for _ in range(count)]


def _backends(dice: random.Random, base: Path) -> list[Backend]:
    found = []
    theirs, ours = {"export": 21.5, "convert": 40.2, "load": 6.1}, {"build": 312.4, "load": 0.8}
    for i, (name, unet) in enumerate(SPEED.items()):
        found.append(
            Backend(
                name,
                SIZE,
                prepare_seconds=ours if name.startswith("tvm") else theirs,
                first_picture_seconds=22 * unet,
                total_seconds=_runs(dice, 21.4 * unet),
                text_seconds=_runs(dice, 0.015 * unet),
                unet_seconds=_runs(dice, 20 * unet),
                vae_seconds=_runs(dice, 1.2 * unet),
                iterations_per_second=1 / unet,
                peak_memory=int(5.1e9 - 4e8 * i),
                size=int(3.4e9 if i < 4 else 1.7e9),
                psnr=None if i == 0 else 95.3 - 14 * i,
                ratio=None if name == "tvm" else 2.7 / unet,
                ratio_interval=None if name == "tvm" else [2.66 / unet, 2.75 / unet],
                picture=draw(base / f"{i}.png", 0.02 * i),
            )
        )
    return found


def _ladder(dice: random.Random) -> list[Rung]:
    shares = list(RUNGS.values())
    return [
        Rung(
            name,
            _runs(dice, 8.7 * share),
            _runs(dice, 8.7 * before),
            share,
            share / before,
            3_438_000_000,
            int(1.9e9 * share),
            110.2 - i,
        )
        for i, (name, share, before) in enumerate(zip(RUNGS, shares, [1.0, *shares], strict=False))
    ] + [Rung("cached_context", skipped="the build failed: exit code 1")]


def _attention(dice: random.Random) -> list[AttentionRow]:
    rows = []
    for layer, queries, keys, width in (
        ("self 64", 4096, 4096, 40),
        ("cross 64", 4096, 77, 40),
        ("self 32", 1024, 1024, 80),
        ("self 16", 256, 256, 160),
    ):
        for method, factor in (("plain", 2.4), ("fused softmax", 1.5), ("flash", 1.0)):
            gflop = 4 * 16 * queries * keys * width / 1e9
            seconds = factor * gflop / 700
            memory = 16 * queries * width * 4 * 4 + (0 if method == "flash" else 16 * queries * keys * 4)
            rows.append(
                AttentionRow(
                    layer,
                    8,
                    queries,
                    keys,
                    width,
                    5,
                    method,
                    _runs(dice, seconds),
                    memory,
                    gflop / seconds,
                    112.5 - factor,
                )
            )
    return rows


def _winograd(dice: random.Random) -> list[WinogradRow]:
    rows = []
    for layer, channels, size in (("down.0", 320, 64), ("down.1", 640, 32), ("up.1", 1280, 16)):
        for method, share in (("direct", 1.0), ("F(2x2)", 0.48), ("F(4x4)", 0.29), ("F(6x6)", 0.25)):
            gflop = 2 * 2 * 9 * channels**2 * size**2 / 1e9
            rows.append(
                WinogradRow(
                    layer,
                    channels,
                    channels,
                    size,
                    size,
                    8,
                    method,
                    _runs(dice, share * gflop / 900),
                    gflop * share,
                    int(2e7 * (2 - share)),
                    140 - 30 * (1 - share),
                )
            )
    return rows


def _throughput(dice: random.Random) -> list[Throughput]:
    steps = [1, 2, 4, 8, 12, 16, 20]
    return [
        Throughput(
            name,
            SIZE,
            steps,
            [1.3 * unet + n * unet * dice.gauss(1, 0.01) for n in steps],
            1.3 * unet,
            unet,
            [0.98 * unet, 1.02 * unet],
            0.9994,
        )
        for name, unet in SPEED.items()
    ]


def _latency(dice: random.Random) -> list[Latency]:
    rows = []
    for name in ("openvino", "tvm"):
        values = sorted(SPEED[name] * (1 + dice.gammavariate(2, 0.02)) for _ in range(200))
        rows.append(Latency(name, SIZE, values, values[100], values[180], values[198]))
    return rows


def _tome(dice: random.Random, base: Path) -> list[TomeRow]:
    rows = []
    for method, factor in (("flash", 1.0), ("plain", 1.6)):
        for ratio in (0.0, 0.1, 0.25, 0.5, 0.75):
            unet = factor * 2.7 * (1 - 0.35 * ratio * factor)
            frechet = 11 + 9 * ratio**2 + dice.random()
            picture = draw(base / f"tome-{method}-{ratio}.png", 0.3 * ratio)
            rows.append(
                TomeRow(
                    "tvm",
                    SIZE,
                    ratio,
                    method,
                    _runs(dice, unet),
                    _runs(dice, factor * 2.7),
                    unet / (factor * 2.7),
                    _runs(dice, 21.4 * unet),
                    None if ratio == 0 else 38 - 22 * ratio,
                    0.93 - 0.2 * ratio,
                    frechet,
                    [frechet - 1, frechet + 1],
                    picture,
                )
            )
    return rows


def _profile(dice: random.Random, name: str) -> ProfileRow:
    """Return kernels of all intensities, some of them above the first roof, and one that is none."""
    peak, made = Peak(3e11, 1.6e10, 2, "made up"), []
    for i in range(30):
        intensity = 10 ** dice.uniform(-1, 3)
        rate = min(peak.flops_per_second, intensity * peak.bytes_per_second) * dice.uniform(0.2, 1.3)
        share = dice.random() ** 3 / 8
        seconds, bound = 40 * share, "compute" if intensity >= peak.ridge else "memory"
        flops = int(rate * seconds)
        roof = min(peak.flops_per_second, intensity * peak.bytes_per_second)
        counts = (flops, int(flops / intensity), rate, rate / intensity, intensity)
        made.append(Kernel("unet", f"kernel_{i}", "matmul", 20, seconds, share, *counts, bound, rate / roof))
    made.sort(key=lambda kernel: -kernel.seconds)
    made.append(Kernel("unet", "vm.builtin.reshape", None, 800, 0.02, 0.0005, *[None] * 7))
    unet = SPEED[name]
    step = AverageStep(20, unet, 0.96 * unet, 0.03 * unet, 0.01 * unet, 1_600_000_000_000, 1.6 / unet / 0.3)
    component = Component("unet", 20, 20 * unet, 0.94, 19.2 * unet, 32_000_000_000_000)
    phases = {"text": 0.1, "steps": 20 * unet, "decode": unet}
    subject = Subject(name, "random:sd15", "a CPU", 2, "float32", 512, 512, 7.5)
    return ProfileRow(name, SIZE, profile=Profile(1, subject, peak, phases, step, [component], made))
