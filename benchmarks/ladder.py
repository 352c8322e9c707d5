"""--ladder: what each optimisation is worth, from all of them off up, one added at a time.

Two rungs are in memory at once and draw in turn, so that a ratio never compares two moments of the machine.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Iterator

from backends.peer import PICTURE
from benchmarks.pictures import pair
from benchmarks.results import OURS
from benchmarks.schema import Rung
from benchmarks.session import Session
from compiler.optimisations import OPTIMISATIONS
from runtime.artifact import Artifact
from utils import units
from utils.progress import say

ORDER = (
    *("layout", "fusion", "packed_weights", "fused_softmax", "flash_attention", "fused_groupnorm", "fused_layernorm"),
    *("fused_gelu", "winograd", "split_float32", "joined_multiplies", "fused_concat", "cached_context", "tuned"),
)
NOTHING, BFLOAT16, MERGING = "nothing", "bfloat16", "token merging 0.5"


def rungs(session: Session) -> Iterator[tuple[str, Session]]:
    """Yield the rungs' names and sessions, the slowest first."""
    names = [NOTHING, *ORDER]
    for count, name in enumerate(names):
        off = [other for other in OPTIMISATIONS if other not in names[: count + 1]]
        yield name, session.variant(disable=",".join(off), dtype="float32")
    yield BFLOAT16, session.variant(dtype="bfloat16")
    yield MERGING, session.variant(dtype="bfloat16", tome_ratio=0.5)


def ladder(session: Session, runs: int, warmups: int) -> Iterator[Rung]:
    """Build and measure rung by rung.

    Raises:
        UserError: the model can't be loaded, or can't make this size.
    """
    session.make_references([PICTURE])
    before: Session | None = None
    ratio = 1.0
    for name, now in rungs(session):
        now.convert([OURS], [PICTURE], now.settings.dtype)
        rung = _rung(name, now, before, ratio, runs, warmups)
        yield rung
        if rung.skipped is not None:
            _remove(now)
            continue
        say(f"{name}: {units.seconds(statistics.median(rung.unet_seconds))}, {rung.step_ratio:.3f} of the rung before")
        assert rung.ratio is not None  # noqa: S101 - only a skipped one has none
        ratio = rung.ratio
        if before is not None:
            _remove(before)
        before = now


def _remove(session: Session) -> None:
    """Remove a rung's artifact, gigabytes of it, unless it is one that other sections use."""
    if session.settings.disable:
        shutil.rmtree(session.settings.artifact, ignore_errors=True)


def _rung(name: str, now: Session, before: Session | None, ratio: float, runs: int, warmups: int) -> Rung:
    """Draw with a rung and the one before it in turn."""
    if (reason := now.refused.get((OURS, now.settings.dtype))) is not None:
        return Rung(name, skipped=reason)
    drawn = pair(now if before is None else before, now, OURS, runs, warmups, name)
    if isinstance(drawn, str):
        return Rung(name, skipped=drawn)
    theirs, ours = (run.seconds("unet_seconds") for run in drawn)
    step = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    unet = Artifact(now.settings.artifact).manifest.components["unet"]
    return Rung(
        name,
        ours,
        theirs,
        ratio * step,
        step,
        unet.parameters.size,
        unet.functions["guided"].workspace,
        unet.psnr["guided"],
    )
