"""How good pictures are: what is right in them, how far they are from real scenes, how well they fit their captions.

Accuracy is over captions. ``thing`` and ``colour``: each thing of the caption is recognised in its place, both of a
pair. ``background``: it is right, and for a plain one its colour too. ``relation``, over pairs only: it is right, and
the two are not the wrong way round.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from demo.dataset import RELATIONS, Scene, make_scene
from demo.judge import HEADS, NONE, Judge, Seen, labels, load_judge
from demo.things import THINGS
from demo.training import one_thread_an_operator

ASPECTS = ("thing", "colour", "background", "relation")
NORMAL = 1.959964  # quantile of 95 %
KINDS = (None, None, RELATIONS[0], None, None, RELATIONS[1], None, None, RELATIONS[2])  # a third are pairs
RESAMPLES = 200


def balanced_scenes(count: int, seed: int) -> list[Scene]:
    """Return ``count`` held-out scenes with each thing first equally often, a third of them pairs, relations balanced.

    They depend on ``seed`` alone: fewer are the first of more.
    """
    names = sorted(THINGS)
    rounds = [divmod(i, len(names)) for i in range(count)]
    wanted = [(names[place], KINDS[(place + 7 * turn) % len(KINDS)]) for turn, place in rounds]
    open_places: dict[tuple[str, str | None], list[int]] = {}
    for i, key in enumerate(wanted):
        open_places.setdefault(key, []).append(i)
    found: dict[int, Scene] = {}
    for index in itertools.count():
        if len(found) == count:
            return [found[i] for i in range(count)]
        scene = make_scene(index, seed, "held-out", pairs=1 / 3, plain=0.25)
        if places := open_places.get((scene.things[0].name, scene.relation)):
            found[places.pop(0)] = scene
    raise AssertionError("the scenes never end")


def marks(seen: Seen, scenes: Sequence[Scene]) -> dict[str, np.ndarray]:
    """Return for each aspect whether it is right, bool [N]; ``relation`` has the pairs only, in their order."""
    right, pairs = _right_heads(seen, scenes), np.array([len(scene.things) == 2 for scene in scenes], bool)
    return {
        "thing": right["thing"] & (right["second_thing"] | ~pairs),
        "colour": right["colour"] & (right["second_colour"] | ~pairs),
        "background": right["background"] & right["background_colour"],
        "relation": (right["relation"] & ~_swapped(seen, scenes))[pairs],
    }


def _right_heads(seen: Seen, scenes: Sequence[Scene]) -> dict[str, np.ndarray]:
    if len(seen) != len(scenes):
        raise ValueError(f"{len(seen)} pictures for {len(scenes)} scenes")
    right = {head: seen.probabilities[head].argmax(1) == wanted for head, wanted in labels(scenes).items()}
    scenic = np.array([scene.background_colour is None for scene in scenes], bool)
    return {**right, "background_colour": right["background_colour"] | scenic}


def _swapped(seen: Seen, scenes: Sequence[Scene]) -> np.ndarray:
    """Tell of each pair whether its things and colours are likelier in each other's place; a lone thing never is."""
    wanted, rows = labels(scenes), np.arange(len(scenes))
    pairs = wanted["relation"] != HEADS["relation"].index(NONE)
    balance = np.zeros(len(scenes))
    for first, second in (("thing", "second_thing"), ("colour", "second_colour")):
        a, b = (np.log(np.maximum(seen.probabilities[head], 1e-9)) for head in (first, second))
        x, y = np.where(pairs, wanted[first], 0), np.where(pairs, wanted[second], 0)
        balance += a[rows, x] + b[rows, y] - a[rows, y] - b[rows, x]
    return pairs & (balance < 0)


def share(right: np.ndarray) -> dict[str, Any]:
    """Return the share of ``right`` (bool [N]), Wilson's 95 % interval (JASA 22, 1927) and N; None where N is 0."""
    n = len(right)
    if n == 0:
        return {"value": None, "interval": None, "count": 0}
    p, spread = float(right.mean()), NORMAL**2 / n
    middle = (p + spread / 2) / (1 + spread)
    half = NORMAL * np.sqrt(p * (1 - p) / n + spread / (4 * n)) / (1 + spread)
    return {"value": p, "interval": [max(0.0, float(middle - half)), min(1.0, float(middle + half))], "count": n}


def per_class(seen: Seen, scenes: Sequence[Scene]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the share that is right of each thing, colour, background and relation that the captions name."""
    right, found = _right_heads(seen, scenes), marks(seen, scenes)
    pairs = [i for i, scene in enumerate(scenes) if len(scene.things) == 2]
    told: dict[str, dict[str, list[bool]]] = {aspect: {} for aspect in ASPECTS}
    for i, scene in enumerate(scenes):
        for thing, slot in zip(scene.things, ("", "second_"), strict=False):
            told["thing"].setdefault(thing.name, []).append(right[f"{slot}thing"][i])
            told["colour"].setdefault(thing.colour, []).append(right[f"{slot}colour"][i])
        told["background"].setdefault(scene.background, []).append(found["background"][i])
    for place, i in enumerate(pairs):
        told["relation"].setdefault(str(scenes[i].relation), []).append(found["relation"][place])
    return {
        aspect: {name: share(np.array(values)) for name, values in sorted(classes.items())}
        for aspect, classes in told.items()
    }


def _distances(features: torch.Tensor, judge: Judge, picks: Sequence[torch.Tensor]) -> list[float]:
    """Return the Fréchet distance of some rows of features [N,C], for each choice of rows in ``picks``."""
    mean, covariance = torch.from_numpy(judge.mean), torch.from_numpy(judge.covariance)
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt()  # root @ root.T is the covariance
    found = []
    for pick in picks:
        chosen = features[pick]
        own = torch.cov(chosen.T, correction=1 if len(pick) > 1 else 0)
        shared = torch.linalg.eigvalsh(root.T @ own @ root).clamp(min=0).sqrt().sum()
        apart = ((chosen.mean(0) - mean) ** 2).sum()
        found.append(float(apart + own.trace() + covariance.trace() - 2 * shared))
    return found


def frechet(features: np.ndarray, judge: Judge, seed: int = 0) -> dict[str, Any]:
    """Return the Fréchet distance (arXiv:1706.08500) of features [N,C] to real scenes, and its 95 % interval.

    The distance is larger for fewer pictures: compare equal N only. A resample repeats pictures, as if there were
    fewer still; so the interval is that of the resampled distances, moved to lie around the value. It tells how much
    the value would differ with N other pictures.
    """
    count = len(features)
    picks = torch.randint(0, count, (RESAMPLES, count), generator=torch.Generator().manual_seed(seed))
    with one_thread_an_operator():  # matrices this small are slower on more
        value, *again = _distances(torch.from_numpy(features), judge, [torch.arange(count), *picks])
    low, high = np.quantile(again, [0.025, 0.975]) - np.mean(again)
    return {"value": value, "interval": [max(0.0, value + float(low)), value + float(high)], "count": count}


def bootstrap_mean(values: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Return the mean of ``values`` [N] and its 95 % bootstrap interval."""
    picks = np.random.default_rng(seed).integers(0, len(values), (1000, len(values)))
    low, high = np.quantile(values[picks].mean(1), [0.025, 0.975])
    return {"value": float(values.mean()), "interval": [float(low), float(high)], "count": len(values)}


def similarities(seen: Seen, scenes: Sequence[Scene]) -> np.ndarray:
    """Return for each picture the cosine of the heads' probabilities and the caption's one-hot answers, [N], 0 to 1.

    All heads side by side are the common space of picture and caption: what CLIP's embeddings are to a CLIP score.
    """
    if len(seen) != len(scenes):
        raise ValueError(f"{len(seen)} pictures for {len(scenes)} scenes")
    rows, dot, norm = np.arange(len(scenes)), np.zeros(len(scenes)), np.zeros(len(scenes))
    for head, wanted in labels(scenes).items():
        dot += seen.probabilities[head][rows, wanted]
        norm += (seen.probabilities[head] ** 2).sum(1)
    return dot / np.sqrt(norm * len(HEADS))


def judge(
    pictures: np.ndarray | Sequence[np.ndarray], scenes: Sequence[Scene], frozen: Judge | None = None
) -> dict[str, Any]:
    """Judge pictures by the scenes that their captions come from.

    Args:
        pictures: uint8 [N,H,W,3], or N of [H,W,3]; other sizes than the scenes' are resized.
        scenes: N scenes; their rendering is not looked at, only what the captions say.
        frozen: another judge than the committed one.

    Returns:
        What JSON can hold: ``accuracy`` by aspect, ``per_class``, ``frechet`` and ``similarity``, each number with its
        95 % ``interval`` and ``count``. ``similarity.shuffled`` is that of each picture with the next one's caption.

    Raises:
        ValueError: no pictures, another number of scenes, or pictures that are not uint8.
        UserError: the frozen weights can't be read.
    """
    frozen = load_judge() if frozen is None else frozen
    return report(frozen.look(pictures), scenes, frozen)


def report(seen: Seen, scenes: Sequence[Scene], frozen: Judge) -> dict[str, Any]:
    """Return what ``judge`` returns, of pictures that were looked at already."""
    others = [*scenes[1:], *scenes[:1]]
    return {
        "accuracy": {aspect: share(right) for aspect, right in marks(seen, scenes).items()},
        "per_class": per_class(seen, scenes),
        "frechet": frechet(seen.features, frozen),
        "similarity": {
            **bootstrap_mean(similarities(seen, scenes)),
            "shuffled": float(similarities(seen, others).mean()) if len(scenes) > 1 else None,
        },
    }
