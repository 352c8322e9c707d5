"""--tome-sweep: time and quality over the share of merged tokens, of ours and of diffusers with tomesd.

Each ratio draws in turn with ratio 0 of the same backend and attention.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from backends.command import run_python
from backends.peer import GUIDANCE_SCALE, PICTURE
from benchmarks.pictures import Run, keep, pair
from benchmarks.results import OURS
from benchmarks.schema import TomeRow
from benchmarks.session import Session
from runtime.quality import finite, psnr
from utils import units
from utils.errors import UserError
from utils.progress import say

KINDS = {  # backend and attention: what to change of the settings
    (OURS, "flash"): {},
    (OURS, "plain"): {"disable": "flash_attention"},
    ("eager", "sdpa"): {},
    ("eager", "math"): {"attention": "math"},
}


def sweep(
    session: Session, ratios: Sequence[float], runs: int, warmups: int, judge_images: int, base: Path
) -> Iterator[TomeRow]:
    """Build, draw and judge with each ratio.

    Raises:
        UserError: the model can't be loaded, or can't make this size.
    """
    session.make_references([PICTURE])
    for (name, attention), changes in KINDS.items():
        plain = session.variant(**changes)
        plain.convert([name], [PICTURE], plain.settings.dtype)
        for ratio in ratios:
            now = plain if ratio == 0 else plain.variant(tome_ratio=ratio)
            if now is not plain:
                now.convert([name], [PICTURE], now.settings.dtype)
            drawn = pair(plain, now, name, runs, warmups, f"{name} {attention} {ratio:g}")
            if isinstance(drawn, str):
                say(f"{name} {attention} {ratio:g}: skipped: {drawn}")
                continue
            scores = _judged(now, judge_images) if (name, attention) == (OURS, "flash") else {}
            yield _row(now, name, attention, ratio, drawn, scores, base)


def _row(
    now: Session,
    name: str,
    attention: str,
    ratio: float,
    drawn: tuple[Run, Run],
    scores: dict[str, Any],
    base: Path,
) -> TomeRow:
    plain, merged = (run.seconds("unet_seconds") for run in drawn)
    unet_ratio = statistics.median(a / b for a, b in zip(merged, plain, strict=True))
    pictures = [run.answers[-1]["picture"] for run in drawn]
    say(f"{name} {attention} {ratio:g}: UNet {units.seconds(statistics.median(merged))}, {unet_ratio:.3f} of ratio 0")
    return TomeRow(
        name,
        f"{now.settings.width}x{now.settings.height}",
        ratio,
        attention,
        unet_seconds=merged,
        plain_seconds=plain,
        unet_ratio=unet_ratio,
        total_seconds=drawn[1].seconds(),
        psnr_to_plain=_psnr(*pictures),
        accuracy=scores.get("accuracy"),
        frechet=scores.get("frechet"),
        frechet_interval=scores.get("frechet_interval"),
        picture=keep(pictures[1], base),
    )


def _psnr(first: str, second: str) -> float:
    with Image.open(first) as a, Image.open(second) as b:
        return finite(psnr(np.asarray(a, np.float32), np.asarray(b, np.float32)))


def _judged(session: Session, images: int) -> dict[str, Any]:
    """Return what the demo model's judge says of ``images`` pictures, nothing where none are wanted."""
    if not images:
        return {}
    settings = session.settings
    label = {} if settings.scheduler_label is None else {"--scheduler-label": settings.scheduler_label}
    with tempfile.TemporaryDirectory() as folder:
        flags = {
            "--artifacts-dir": settings.artifact,
            "--num-images": images,
            "--steps": settings.steps,
            "--guidance-scale": GUIDANCE_SCALE,
            "--num-threads": settings.num_threads,
            "--json": Path(folder) / "scores.json",
        }
        try:
            run_python(["demo/evaluate.py"], {**flags, **label})
        except UserError as error:
            say(f"not judged: {error}")
            return {}
        scores = json.loads((Path(folder) / "scores.json").read_text(encoding="utf-8"))
    shares = [scores["accuracy"][aspect]["value"] for aspect in scores["accuracy"]]
    known = [share for share in shares if share is not None]
    return {
        "accuracy": statistics.mean(known) if known else None,
        "frechet": scores["frechet"]["value"],
        "frechet_interval": scores["frechet"]["interval"],
    }
