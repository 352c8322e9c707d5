"""How the judge is trained: scenes of the whole grammar, altered mildly, and no generated picture."""

from __future__ import annotations

import json
import math
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from demo.dataset import SIZE, Scene, make_scene, render
from demo.judge import HEADS, Classifier, Judge, Seen, classes_text, labels, to_input
from demo.judge_config import JudgeConfig
from demo.saving import replacing
from demo.scores import balanced_scenes, marks
from utils.progress import progress, say
from utils.units import seconds, size

CHUNK = 250
REACH = 3  # pixels that the blur reads on each side
SHIFT = 4  # pixels that a picture is moved by at most, each way


def training_scene(index: int, seed: int) -> Scene:
    """Return scene ``index`` of the judge's own stream: three in ten begin with a held-out combination."""
    subset: Literal["held-out", "train"] = "held-out" if index % 10 < 3 else "train"
    return make_scene(index, seed, subset, pairs=0.5, plain=0.3, sized=0.6)


def _draw_chunk(task: tuple[str, int, int, int]) -> None:
    path, count, seed, first = task
    pixels = np.lib.format.open_memmap(path, mode="r+")
    for index in range(first, min(first + CHUNK, count)):
        pixels[index] = np.asarray(render(training_scene(index, seed)))


def drawn(folder: Path, count: int, seed: int, workers: int) -> np.ndarray:
    """Return the scenes as uint8 [count,SIZE,SIZE,3], mapped from a file in ``folder``, drawn first if need be."""
    path = folder / f"scenes-{seed}-{count}.npy"
    if not path.exists():
        with replacing(path) as temporary:
            np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=(count, SIZE, SIZE, 3)).flush()
            tasks = [(str(temporary), count, seed, first) for first in range(0, count, CHUNK)]
            _draw_all(tasks, min(workers, len(tasks)))
    return np.load(path, mmap_mode="r")


def _draw_all(tasks: list[tuple[str, int, int, int]], workers: int) -> None:
    if workers == 1:
        for task in progress(tasks, "scenes"):
            _draw_chunk(task)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for _ in progress(pool.imap_unordered(_draw_chunk, tasks), "scenes", len(tasks)):
            pass


def alter(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blur, shift, brighten and add noise, mildly, as generated pictures are a little soft: [B,3,S,S], -1 to 1."""

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.rand(len(images), 1, 1, 1, generator=generator) * (high - low) + low

    side = images.shape[-1]
    wide = nn.functional.pad(images, (REACH + SHIFT,) * 4, mode="replicate")
    wide = wide.contiguous(memory_format=torch.channels_last)  # the blur is twenty times faster
    sigma = 0.3 + float(torch.rand((), generator=generator))
    line = torch.exp(-0.5 * (torch.arange(-REACH, REACH + 1) / sigma) ** 2)
    line = (line / line.sum()).expand(3, 1, -1)
    soft = nn.functional.conv2d(wide, line[..., None, :], groups=3)
    soft = nn.functional.conv2d(soft, line[..., None], groups=3)
    share = uniform(-0.7, 1.0).clamp(min=0)  # four in ten stay sharp
    mixed = torch.lerp(wide[..., REACH:-REACH, REACH:-REACH], soft, share)
    corners = torch.randint(0, 2 * SHIFT + 1, (4, 2), generator=generator).tolist()
    moved = [part[..., y : y + side, x : x + side] for part, (y, x) in zip(mixed.chunk(4), corners, strict=False)]
    lit = torch.cat(moved) * uniform(0.93, 1.07) + uniform(-0.06, 0.06)
    noise = torch.rand(lit.shape, generator=generator).contiguous(memory_format=torch.channels_last) - 0.5
    return (lit + uniform(-0.2, 0.2).clamp(min=0) * noise).clamp(-1, 1)


def _batches(count: int, batch: int, epochs: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(count)
        yield from (np.sort(order[i : i + batch]) for i in range(0, count - batch + 1, batch))


def fit(network: Classifier, pixels: np.ndarray, targets: dict[str, np.ndarray], config: JudgeConfig) -> None:
    """Train in bfloat16 with AdamW and a rate that warms up and falls along a cosine to 0."""
    generator = torch.Generator().manual_seed(config.seed)
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, config.learning_rate)
    steps = config.epochs * (len(pixels) // config.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, step / steps)))
    )
    known = {head: torch.from_numpy(values) for head, values in targets.items()}
    start, recent = time.monotonic(), []
    batches = _batches(len(pixels), config.batch_size, config.epochs, config.seed)
    for step, chosen in enumerate(progress(batches, "steps", steps), 1):
        images = alter(to_input(pixels[chosen]), generator)
        with torch.autocast("cpu", torch.bfloat16):
            logits, _ = network(images)
        parts = [nn.functional.cross_entropy(logits[head].float(), known[head][chosen]) for head in HEADS]
        loss = torch.stack(parts).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        recent.append(loss.item())
        if step % 100 == 0:
            passed = time.monotonic() - start
            left = seconds(passed / step * (steps - step))
            say(f"step {step} of {steps}  loss {sum(recent) / len(recent):.4f}  {left} left")
            recent.clear()


def train(config: JudgeConfig) -> None:
    """Draw, train, measure on scenes of other seeds, and write the weights in half precision."""
    torch.set_num_threads(config.num_threads)
    torch.manual_seed(config.seed)
    pixels = drawn(config.work, config.scenes, config.seed, config.num_threads)
    targets = labels(training_scene(index, config.seed) for index in range(len(pixels)))
    network = Classifier()
    network.body.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fit(network, pixels, targets, config)
    network.eval()
    freeze(network, config)


def freeze(network: Classifier, config: JudgeConfig) -> None:
    """Round the weights to half precision, measure what is left, and write the file whole or not at all."""
    state = {
        name: value.half().contiguous() for name, value in network.state_dict().items() if value.is_floating_point()
    }
    network.load_state_dict({name: value.float() for name, value in state.items()}, strict=False)
    blank = Judge(network, np.empty(0), np.empty(0), {})
    features = _look(blank, balanced_scenes(config.reference, config.seed + 1), "reference").features
    metadata = {
        "classes": classes_text(),
        "accuracy on real scenes": json.dumps(measure(blank, config)),
        "training": json.dumps({"scenes": config.scenes, "epochs": config.epochs, "seed": config.seed}),
        "real scenes": str(config.reference),
        "licence": "CC0-1.0",
    }
    state["real.mean"] = torch.from_numpy(features.mean(0)).float()
    state["real.covariance"] = torch.from_numpy(np.cov(features, rowvar=False)).float()
    with replacing(config.output) as temporary:
        save_file(state, temporary, metadata)
    say(f"{config.output}: {size(config.output.stat().st_size)}")


def measure(judge: Judge, config: JudgeConfig) -> dict[str, dict[str, float]]:
    """Return the share that is right on scenes of seeds that training never used: held-out ones, and of all kinds."""
    measured = {}
    for name, scenes in (
        ("held-out", balanced_scenes(config.check, config.seed + 2)),
        ("all", [training_scene(index, config.seed + 3) for index in range(config.check)]),
    ):
        found = marks(_look(judge, scenes, name), scenes)
        measured[name] = {key: round(float(right.mean()), 5) for key, right in found.items() if len(right)}
        say(f"{name}: " + ", ".join(f"{key} {100 * share:.2f} %" for key, share in measured[name].items()))
    return measured


def _look(judge: Judge, scenes: Sequence[Scene], name: str) -> Seen:
    return judge.look([np.asarray(render(scene)) for scene in progress(scenes, name)])
