"""Draw a picture with models that OpenVINO has converted: what inference.py does, for comparison with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from backends.model_pipeline import PIPELINE, ModelPipeline
from backends.openvino_model import PRECISIONS, OpenVinoModel
from backends.peer import FUNCTIONS
from runtime.picture import PictureInfo, save_picture
from runtime.run import FALLBACK_PROMPT
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


def load(config: PictureConfig) -> ModelPipeline:
    """Compile the models for this CPU.

    Raises:
        UserError: an unknown sampler, or more steps than it can make.
    """
    threads = physical_cores() if config.num_threads is None else config.num_threads
    models = {name: OpenVinoModel(config.model_dir / name, config.dtype, threads) for name in FUNCTIONS}
    pipeline = ModelPipeline(config.model_dir, models, config.scheduler_label)
    pipeline.scheduler.set_timesteps(config.steps)
    return pipeline


def run(config: PictureConfig) -> None:
    """Draw and save what ``config`` asks for.

    Raises:
        UserError: an unknown sampler, or a folder that can't be written.
    """
    pipeline, prompt = load(config), FALLBACK_PROMPT if config.prompt is None else config.prompt
    first = 0 if config.seed is None else config.seed
    for seed in range(first, first + config.num_images):
        pixels = pipeline.draw(prompt, config.negative_prompt, seed, config.steps, config.guidance_scale).pictures[0]
        info = PictureInfo(
            prompt=prompt,
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
