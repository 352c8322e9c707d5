"""Dynamic thresholding of the predicted picture (Imagen, arXiv:2205.11487, section 2.3), for models of pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schedulers.settings import CONFIG_FILE, Settings
from utils.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ThresholdSettings(Settings):
    """Settings of a sampler that can threshold x_0."""

    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.dynamic_thresholding_ratio <= 1:
            raise UserError(
                f"{CONFIG_FILE}: dynamic_thresholding_ratio must be from 0 to 1, not {self.dynamic_thresholding_ratio}"
            )
        if not self.sample_max_value > 0:
            raise UserError(f"{CONFIG_FILE}: sample_max_value must be above 0, not {self.sample_max_value}")

    def threshold(self, x_0: np.ndarray) -> np.ndarray:
        """Return x_0, float32 [B, ...], each picture scaled into [-1, 1] by its own quantile."""
        flat = x_0.reshape(len(x_0), -1)
        bound = np.quantile(np.abs(flat), self.dynamic_thresholding_ratio, axis=1, keepdims=True)
        bound = np.clip(bound, 1, self.sample_max_value).astype(np.float32)
        return (np.clip(flat, -bound, bound) / bound).reshape(x_0.shape)
