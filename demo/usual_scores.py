"""The usual FID and CLIP score through torchmetrics, from weights that the user has. Nothing is downloaded."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from utils.errors import UserError

BATCH = 32


def check_packages(inception: bool, clip: bool) -> None:
    """Refuse before any picture is drawn.

    Raises:
        UserError: what the wanted scores need is not installed; it is named.
    """
    for wanted, flag, package, name in (
        (inception or clip, "--inception and --clip", "torchmetrics", "torchmetrics"),
        (inception, "--inception", "torch_fidelity", "torch-fidelity"),
    ):
        if wanted and importlib.util.find_spec(package) is None:
            raise UserError(f"{flag}: the package {name} is not installed; pip install {name}")


def _batches(pictures: Sequence[np.ndarray]) -> list[torch.Tensor]:
    """Return uint8 [B,3,H,W]; pictures of one size."""
    parts = [np.stack(pictures[start : start + BATCH]) for start in range(0, len(pictures), BATCH)]
    return [torch.from_numpy(part).permute(0, 3, 1, 2).contiguous() for part in parts]


def load_inception(path: Path) -> nn.Module:
    """Load the FID's Inception network of torch-fidelity, 2,048 features, from safetensors or a state dict of tensors.

    Raises:
        UserError: it is no such file.
    """
    from torchmetrics.image.fid import NoTrainInceptionV3

    try:
        safe = path.suffix.lower() == ".safetensors"
        state = load_file(path) if safe else torch.load(path, "cpu", weights_only=True)
        with tempfile.TemporaryDirectory() as folder:
            # the package would unpickle anything; what it gets here is what was read safely
            torch.save(dict(state), f"{folder}/weights.pth")
            return NoTrainInceptionV3("inception-v3-compat", ["2048"], f"{folder}/weights.pth")
    except Exception as error:  # a broken or strange file may fail in any way
        reason = str(error).strip().split("\n")[0]
    raise UserError(f"--inception {path}: no weights of torch-fidelity's Inception network ({reason})")


def inception_distance(pictures: Sequence[np.ndarray], real: Sequence[np.ndarray], inception: nn.Module) -> float:
    """Return the Fréchet distance of pictures and real ones, uint8 [H,W,3] each, in the features of ``inception``."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    distance = FrechetInceptionDistance(inception)
    for batches, are_real in ((_batches(real), True), (_batches(pictures), False)):
        for batch in batches:
            distance.update(batch, real=are_real)
    return float(distance.compute())


class _Clip(nn.Module):
    """A CLIP model that returns embeddings as tensors, as torchmetrics expects them."""

    def __init__(self, folder: Path) -> None:
        from transformers import CLIPModel

        super().__init__()
        self.model = CLIPModel.from_pretrained(folder, use_safetensors=True, local_files_only=True).eval()
        self.config = self.model.config

    def get_image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model.get_image_features(pixels).pooler_output

    def get_text_features(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.model.get_text_features(ids, mask).pooler_output


def load_clip(folder: Path) -> tuple[nn.Module, Any]:
    """Load a CLIP model and its processor.

    Raises:
        UserError: the folder holds no CLIP model in safetensors with its processor.
    """
    from transformers import CLIPProcessor

    try:
        return _Clip(folder), CLIPProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a broken or strange folder may fail in any way
        reason = str(error).strip().split("\n")[0]
    raise UserError(f"--clip {folder}: no CLIP model in safetensors with its processor ({reason})")


def clip_score(pictures: Sequence[np.ndarray], captions: Sequence[str], clip: tuple[nn.Module, Any]) -> float:
    """Return 100 times the mean cosine of the embeddings of picture, uint8 [H,W,3], and caption, at least 0."""
    from torchmetrics.multimodal import CLIPScore

    score = CLIPScore(lambda: clip)
    for start, batch in zip(range(0, len(pictures), BATCH), _batches(pictures), strict=True):
        score.update(list(batch), list(captions[start : start + BATCH]))
    return float(score.compute())
