"""The judge: a small classifier that names what a picture of the demo's grammar shows. Frozen in judge.safetensors.

It never saw a generated picture. Its last hidden layer is what the Fréchet distance is measured in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from demo.backgrounds import BACKGROUNDS
from demo.dataset import COLOURS, RELATIONS, SIZE, Scene
from demo.things import THINGS
from utils.errors import UserError

WEIGHTS = Path(__file__).resolve().parent / "judge.safetensors"
NONE = "none"
# Slot one is the left or upper thing of a pair, which its caption names first, or the lone thing.
HEADS: dict[str, tuple[str, ...]] = {
    "thing": tuple(THINGS),
    "colour": tuple(COLOURS),
    "second_thing": (*THINGS, NONE),
    "second_colour": (*COLOURS, NONE),
    "background": BACKGROUNDS,
    "background_colour": (*COLOURS, NONE),  # of a plain background
    "relation": (*RELATIONS, NONE),
}
FEATURES = 128
BATCH = 64


def labels(scenes: Iterable[Scene]) -> dict[str, np.ndarray]:
    """Return the right class of each head, int64 [N]."""
    rows = []
    for scene in scenes:
        second = scene.things[1] if len(scene.things) > 1 else None
        rows.append(
            (
                scene.things[0].name,
                scene.things[0].colour,
                second.name if second else NONE,
                second.colour if second else NONE,
                scene.background,
                scene.background_colour or NONE,
                scene.relation or NONE,
            )
        )
    columns = zip(*rows, strict=True) if rows else [()] * len(HEADS)
    return {
        head: np.array([names.index(value) for value in column], np.int64)
        for (head, names), column in zip(HEADS.items(), columns, strict=True)
    }


class Classifier(nn.Module):
    """Six convolutions, the first on patches, then a layer of features that keeps where things are, then the heads."""

    def __init__(self) -> None:
        super().__init__()
        plan = ((48, 6, 4), (48, 3, 1), (96, 3, 2), (96, 3, 1), (144, 3, 2), (144, 3, 1), (40, 1, 1))
        layers: list[nn.Module] = []
        channels = 3
        for width, kernel, stride in plan:
            convolution = nn.Conv2d(channels, width, kernel, stride, (kernel - 1) // 2, bias=False)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.hidden = nn.Sequential(
            nn.Linear(channels * (SIZE // 16) ** 2, FEATURES, bias=False), nn.BatchNorm1d(FEATURES)
        )
        self.heads = nn.ModuleDict({head: nn.Linear(FEATURES, len(names)) for head, names in HEADS.items()})

    def forward(self, images: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Return logits [B,classes] a head and features [B,FEATURES] of images [B,3,SIZE,SIZE] from -1 to 1."""
        features = self.hidden(self.body(images))
        return {name: head(features.relu()) for name, head in self.heads.items()}, features


def to_input(pictures: np.ndarray) -> torch.Tensor:
    """Turn uint8 [B,H,W,3] into float32 [B,3,SIZE,SIZE] from -1 to 1, resized where the size is another."""
    images = torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    if images.shape[-2:] != (SIZE, SIZE):
        images = nn.functional.interpolate(images, (SIZE, SIZE), mode="bilinear", antialias=True)
    return images.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True, eq=False)
class Seen:
    """What the judge saw: probabilities float64 [N,classes] a head, and features float64 [N,FEATURES]."""

    probabilities: dict[str, np.ndarray]
    features: np.ndarray

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True, eq=False)
class Judge:
    """The frozen classifier, and mean [FEATURES] and covariance [FEATURES,FEATURES] of its features on real scenes."""

    network: Classifier
    mean: np.ndarray
    covariance: np.ndarray
    metadata: dict[str, str]

    @torch.no_grad()
    def look(self, pictures: np.ndarray | Sequence[np.ndarray]) -> Seen:
        """Judge pictures, uint8 [N,H,W,3] or N of [H,W,3] that may differ in size.

        Raises:
            ValueError: no pictures, or not uint8 with three channels.
        """
        if len(pictures) == 0 or any(p.dtype != np.uint8 or p.ndim != 3 or p.shape[-1] != 3 for p in pictures):
            raise ValueError("the judge takes one or more pictures, uint8 [H,W,3]")
        chosen, features = [], []
        for start in range(0, len(pictures), BATCH):
            part = [to_input(picture[None]) for picture in pictures[start : start + BATCH]]
            logits, found = self.network(torch.cat(part))
            chosen.append({head: values.double().softmax(1) for head, values in logits.items()})
            features.append(found.double())
        probabilities = {head: torch.cat([part[head] for part in chosen]).numpy() for head in HEADS}
        return Seen(probabilities, torch.cat(features).numpy())


@lru_cache
def load_judge(path: Path = WEIGHTS) -> Judge:
    """Load the frozen judge.

    Raises:
        UserError: the file is missing, broken, or made for another grammar.
    """
    if not path.is_file():
        raise UserError(f"{path}: the judge's weights are missing; train_judge.py makes them")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except SafetensorError as error:
        raise UserError(f"{path} is broken or was cut short ({error}); restore it") from None
    if metadata.get("classes") != classes_text():
        raise UserError(f"{path} judges another grammar than demo/dataset.py draws; run train_judge.py")
    mean, covariance = (tensors.pop(name).double().numpy() for name in ("real.mean", "real.covariance"))
    network = Classifier()
    network.load_state_dict(
        {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    )
    network.body.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Judge(network.eval(), mean, covariance, metadata)


def classes_text() -> str:
    """Return the classes of all heads as one text, which the weights are stored with."""
    return json.dumps(HEADS)
