"""SD 1.5's size, random weights: minutes and gigabytes, so only with ``-m full_size``."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from models.checkpoint import load_checkpoint
from runtime.artifact import Artifact
from runtime.pipeline import Pipeline, Request

PROMPT, SEED, STEPS, GUIDANCE = "a red fox in the snow", 7, 2, 7.5
BUILD_SECONDS = 360


def psnr(reference: np.ndarray, result: np.ndarray) -> float:
    error = np.sqrt(np.mean((reference.astype("float64") - result) ** 2))
    return float(20 * np.log10(np.abs(reference).max() / error))


@pytest.mark.full_size
def test_sd15_builds_in_time_and_samples_as_diffusers(tmp_path: Path, good_script) -> None:
    start = time.perf_counter()
    good_script("build.py", "--model", "random:sd15", "--output-dir", tmp_path / "sd15", timeout=1800)
    assert time.perf_counter() - start <= BUILD_SECONDS

    manifest = json.loads((tmp_path / "sd15" / "manifest.json").read_text())
    parity = [value for part in manifest["components"].values() for value in part["psnr"].values()]
    assert len(parity) == 4 and min(parity) >= 60
    for part in manifest["components"].values():
        assert part["parameters"]["size"] <= 1.6 * part["raw_bytes"]

    pipeline = Pipeline(Artifact(tmp_path / "sd15"))
    request = Request(prompt=PROMPT, steps=STEPS, guidance_scale=GUIDANCE, scheduler_label="ddim")
    latents = list(pipeline.sample(request, [SEED]))[-1].x_t

    from diffusers import DDIMScheduler

    baseline = load_checkpoint("random:sd15").pipeline()
    baseline.scheduler = DDIMScheduler.from_config(baseline.scheduler.config)
    generator = torch.Generator("cpu").manual_seed(SEED)
    expected = baseline(
        PROMPT, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generator, output_type="latent"
    ).images.numpy()
    assert np.ptp(expected) > 1
    assert psnr(expected, latents) >= 50
