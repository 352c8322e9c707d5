"""What evaluate.py does: draw, judge, print, and write the scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from demo import usual_scores
from demo.dataset import Scene, render
from demo.drawing import Source, open_source
from demo.judge import Judge, Seen, load_judge
from demo.judge_config import EvaluateConfig
from demo.pictures import save_atomically
from demo.saving import replacing
from demo.scores import ASPECTS, balanced_scenes, marks, report
from demo.sheet import sheet
from utils.errors import UserError
from utils.progress import progress, say

CAPTIONS_SEED = 2000  # of the captions: no training and no test of the judge uses it
SEEDS = 2**64
SHOWN, COLUMNS = 48, 8  # pictures of the grid, and of a row
WEAK = 0.95


def evaluate(config: EvaluateConfig) -> None:
    """Judge the pipeline that ``config`` names.

    Raises:
        UserError: a model, weights or a folder that can't be used, a package that is missing, NaN or Inf.
    """
    usual_scores.check_packages(config.inception is not None, config.clip is not None)
    if config.inception is not None and config.num_images < 2:
        raise UserError("--inception needs --num-images 2 or more")
    inception = None if config.inception is None else usual_scores.load_inception(config.inception)
    clip = None if config.clip is None else usual_scores.load_clip(config.clip)
    frozen, source = load_judge(), open_source(config)
    scenes = balanced_scenes(config.num_images, CAPTIONS_SEED)
    captions = [scene.caption for scene in scenes]
    seeds = [(config.seed + i) % SEEDS for i in range(config.num_images)]
    pictures = list(progress(source.draw(captions, seeds), "pictures", config.num_images))
    real = [np.asarray(render(scene)) for scene in progress(scenes, "real scenes")]
    seen = frozen.look(pictures)
    result = {**_head(config, source, frozen), **report(seen, scenes, frozen)}
    result["real_scenes"] = _reference(frozen.look(real), scenes, frozen)
    if inception is not None:
        result["fid"] = usual_scores.inception_distance(pictures, real, inception)
    if clip is not None:
        result["clip_score"] = usual_scores.clip_score(pictures, captions, clip)
    say(table(result))
    _write(config, result, pictures, scenes, seen)


def _head(config: EvaluateConfig, source: Source, frozen: Judge) -> dict[str, Any]:
    return {
        "pipeline": source.pipeline,
        "model": source.name,
        "model_digest": source.digest,
        "num_images": config.num_images,
        "steps": config.steps,
        "guidance_scale": config.guidance_scale,
        "scheduler": source.sampler,
        "seed": config.seed,
        "judge": json.loads(frozen.metadata["accuracy on real scenes"]),
    }


def _reference(seen: Seen, scenes: Sequence[Scene], frozen: Judge) -> dict[str, Any]:
    """Return the scores of real scenes of the same captions: what a perfect model would get."""
    found = report(seen, scenes, frozen)
    return {key: found[key] for key in ("accuracy", "frechet", "similarity")}


def _percent(score: dict[str, Any]) -> str:
    if score["value"] is None:
        return f"{'none':>8}{'':20}"
    low, high = (100 * bound for bound in score["interval"])
    return f"{100 * score['value']:6.1f} %  {low:5.1f} to {high:5.1f} %"


def _number(score: dict[str, Any]) -> str:
    low, high = score["interval"]
    return f"{score['value']:8.3f}  {low:.3f} to {high:.3f}"


def table(result: dict[str, Any]) -> str:
    """Return the scores as a few lines to read."""
    real = result["real_scenes"]
    first = f"{result['num_images']} pictures of {result['model']} ({result['pipeline']}), {result['scheduler']}, "
    lines = [first + f"{result['steps']} steps, guidance {result['guidance_scale']:g}, seed {result['seed']}"]
    lines.append(f"{'':12}{'value':>8}  {'95 % interval':24}{'real scenes':>12}")
    for aspect in ASPECTS:
        score, ideal = result["accuracy"][aspect], real["accuracy"][aspect]["value"]
        shown = "" if ideal is None else f"{100 * ideal:.1f} %"
        lines.append(f"{aspect:12}{_percent(score):34}{shown:>12}")
    for name in ("similarity", "frechet"):
        lines.append(f"{name:12}{_number(result[name]):34}{real[name]['value']:>12.3f}")
    lines += [f"{name:12}{result[name]:8.3f}" for name in ("fid", "clip_score") if name in result]
    weak = [
        (score["value"], f"{name} {100 * score['value']:.0f} % of {score['count']}")
        for classes in result["per_class"].values()
        for name, score in classes.items()
        if score["value"] < WEAK
    ]
    lines += [f"below {WEAK:.0%}: " + ", ".join(text for _, text in sorted(weak))] if weak else []
    return "\n".join(lines)


def faults(seen: Seen, scenes: Sequence[Scene]) -> list[str]:
    """Return for each picture what is wrong in it, separated by commas, or nothing."""
    found = marks(seen, scenes)
    relation = iter(found["relation"])
    told = []
    for i, scene in enumerate(scenes):
        right = {aspect: found[aspect][i] for aspect in ASPECTS[:3]}
        right["relation"] = next(relation) if len(scene.things) == 2 else True
        told.append(", ".join(aspect for aspect, good in right.items() if not good))
    return told


def _write(
    config: EvaluateConfig,
    result: dict[str, Any],
    pictures: Sequence[np.ndarray],
    scenes: Sequence[Scene],
    seen: Seen,
) -> None:
    if config.json is not None:
        with replacing(config.json) as temporary:
            temporary.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if config.grid is not None:
        wrong, captions = faults(seen, scenes)[:SHOWN], [scene.caption for scene in scenes[:SHOWN]]
        save_atomically(sheet(pictures[:SHOWN], captions, wrong, COLUMNS), config.grid)
