"""Draw a picture with models that OpenVINO has converted: what inference.py does, for comparison with it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import schedulers
from backends.openvino_model import PIPELINE, PRECISIONS, OpenVinoModel
from runtime.artifact import TOKENIZER
from runtime.picture import PictureInfo, save_picture, to_uint8
from runtime.run import FALLBACK_PROMPT
from runtime.tokenizer import Tokenizer
from utils.command_line import flag, parse
from utils.config import SamplingConfig
from utils.cpu import physical_cores
from utils.errors import UserError, choose, run_script
from utils.progress import say

EXAMPLES = """
  python -m backends.openvino_picture --model-dir outputs/benchmark/MODEL/openvino-2026.4.1 --steps 20 --seed 0
  python -m backends.openvino_picture --model-dir MODEL --dtype bfloat16 --prompt "a castle"
"""


@dataclass(frozen=True, kw_only=True)
class PictureConfig(SamplingConfig):
    """What ``python -m backends.openvino_picture`` draws."""

    model_dir: Path = flag(Path("model"), "folder of the models that a benchmark converted")
    dtype: str = flag("float32", "float32 or bfloat16")

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("--dtype", self.dtype, PRECISIONS)
        if not (self.model_dir / PIPELINE).is_file():
            raise UserError(f"--model-dir {self.model_dir}: no {PIPELINE} there; python -m benchmarks.cpu makes it")
        if self.guidance_scale <= 1:
            raise UserError(f"--guidance-scale must be more than 1 for these models, not {self.guidance_scale}")


class OpenVinoPipeline:
    """Tokenizer and models, loaded."""

    def __init__(self, config: PictureConfig) -> None:
        folder, threads = config.model_dir, physical_cores() if config.num_threads is None else config.num_threads
        self.description = json.loads((folder / PIPELINE).read_text(encoding="utf-8"))
        self.latent_shape = tuple(self.description["latent_shape"])
        scheduler = self.description["scheduler"]
        label = schedulers.default_label(scheduler) if config.scheduler_label is None else config.scheduler_label
        self.scheduler = schedulers.create(label, scheduler)
        self.scheduler.set_timesteps(config.steps)  # refuses more steps than it can make
        self.tokenizer = Tokenizer(folder / TOKENIZER)
        self.text_encoder, self.unet, self.vae_decoder = (
            OpenVinoModel(folder / name, config.dtype, threads) for name in ("text_encoder", "unet", "vae_decoder")
        )

    def generate(self, config: PictureConfig, seed: int) -> np.ndarray:
        """Draw one picture, uint8 [H, W, 3]."""
        prompts = (config.negative_prompt, FALLBACK_PROMPT if config.prompt is None else config.prompt)
        context = np.concatenate([self.text_encoder(self.tokenizer.encode(prompt)).copy() for prompt in prompts])
        self.scheduler.set_timesteps(config.steps)  # forgets the picture before
        noise = schedulers.NoiseGenerator(seed)
        x = noise(self.latent_shape) * np.float32(self.scheduler.init_noise_sigma)
        for i, t in enumerate(self.scheduler.timesteps):
            model_input = self.scheduler.scale_model_input(x, i)
            both = self.unet(np.concatenate([model_input] * 2), np.array([t], np.float32), context)
            eps_uncond, eps_cond = np.split(both, 2)
            eps = eps_uncond + np.float32(config.guidance_scale) * (eps_cond - eps_uncond)
            x = self.scheduler.step(eps, i, x, noise)
        return to_uint8(self.vae_decoder(x)[0])


def run(config: PictureConfig) -> None:
    """Draw and save what ``config`` asks for.

    Raises:
        UserError: an unknown sampler, or a folder that can't be written.
    """
    pipeline = OpenVinoPipeline(config)
    first = 0 if config.seed is None else config.seed
    for seed in range(first, first + config.num_images):
        pixels = pipeline.generate(config, seed)
        info = PictureInfo(
            prompt=FALLBACK_PROMPT if config.prompt is None else config.prompt,
            negative_prompt=config.negative_prompt,
            steps=config.steps,
            sampler=pipeline.scheduler.sampler_name,
            guidance_scale=config.guidance_scale,
            seed=seed,
            width=pixels.shape[1],
            height=pixels.shape[0],
            model_name=pipeline.description["model_name"],
            model_digest=pipeline.description["model_digest"],
        )
        say(str(save_picture(pixels, config.output_dir, config.output_image, info)))


def main(argv: list[str]) -> None:
    """Draw what the flags say."""
    run(parse(PictureConfig, argv, __doc__ or "", EXAMPLES))


if __name__ == "__main__":
    run_script(main)
