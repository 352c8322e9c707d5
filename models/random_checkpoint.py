"""Checkpoints with seeded random weights: full-size work without a download.

python -m models.random_checkpoint --arch sd15 --output checkpoints/random-sd15
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from models.architectures import CLIP_LENGTH, Architecture, architecture
from utils.command_line import existing_parent, flag, parse
from utils.errors import UserError, choose, run_script
from utils.files import folder_size
from utils.units import size

if TYPE_CHECKING:
    import torch

    from models.assembly import Checkpoint

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
RESIDUAL_ENDS = ("conv2", "out_proj", "fc2", "to_out.0", "ff.net.2", "proj_out")
RESIDUAL_GAIN = 0.5  # each residual branch adds little, so that depth does not amplify
PROMPT_GAIN = 2.0  # but what the prompt says must show
NOISE_GAIN = 2.0  # SiLU before the last convolution halves the UNet's output
EXAMPLES = """
  python -m models.random_checkpoint --arch tiny --output checkpoints/tiny
  python -m models.random_checkpoint --arch sd15 --seed 1 --output checkpoints/sd15
"""


@dataclass(frozen=True, kw_only=True)
class RandomConfig:
    """What ``python -m models.random_checkpoint`` writes."""

    arch: str = flag("tiny", "tiny (SD 1's layout), tiny-sd2 (SD 2's layout and v-prediction), sd15 or sd21")
    output: Path | None = flag(None, "folder to write; it must not exist yet")
    seed: int = flag(0, "seed of the weights, 0 to 2^63-1")
    prediction_type: str | None = flag(None, "epsilon, v_prediction or sample (default: the architecture's own)")

    def __post_init__(self) -> None:
        architecture(self.arch, f"--arch {self.arch}")
        if self.prediction_type is not None:
            choose("--prediction-type", self.prediction_type, PREDICTION_TYPES)
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed must be from 0 to 2^63-1, not {self.seed}")
        if self.output is None:
            raise UserError("--output is missing; name the folder to write")
        if self.output.exists():
            raise UserError(f"--output {self.output} exists already; name a new folder")
        if not existing_parent(self.output).is_dir():
            raise UserError(f"--output {self.output}: {existing_parent(self.output)} is a file, not a folder")


def random_checkpoint(arch: str, seed: int = 0, prediction_type: str | None = None) -> Checkpoint:
    """Make a checkpoint of architecture ``arch`` in memory, its weights drawn from ``seed``.

    Outputs of all components are of order 1. ``prediction_type`` replaces the architecture's own in the scheduler
    config; the weights don't depend on it.

    Raises:
        UserError: there is no such architecture; the choices are listed.
    """
    from models.assembly import build_module, make_checkpoint, quiet
    from models.vocabulary import random_tokenizer

    parts = architecture(arch, f"--model random:{arch}")
    if prediction_type is not None:
        parts = dataclasses.replace(parts, scheduler={**parts.scheduler, "prediction_type": prediction_type})
    with quiet():
        modules = {name: build_module(name, getattr(parts, name), arch) for name in ("text_encoder", "unet", "vae")}
        for offset, module in enumerate(modules.values()):
            draw_weights(module, seed + offset * 2**32)
        tokenizer = random_tokenizer(parts.text_encoder["vocab_size"], CLIP_LENGTH, parts.pad_token)
        return make_checkpoint(
            name=f"random:{arch}",
            digest=_digest(parts, seed),
            tokenizer=tokenizer,
            scheduler_config=parts.scheduler,
            default_prompt=None,
            **modules,
        )


def draw_weights(module: torch.nn.Module, seed: int) -> None:
    """Fill a module, made on the meta device, so that its output is of order 1 and depends on every weight.

    Weights have the variance 1 / fan-in (LeCun et al., Efficient BackProp, 1998), residual branches end on a gain
    below 1, and scales and biases are near, but not at, 1 and 0.
    """
    import torch

    from models.weights import restore_buffers

    module.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed % 2**63)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            mean, deviation = _distribution(name, tensor)
            tensor.normal_(mean, deviation, generator=generator)
    restore_buffers(module)


def _distribution(name: str, tensor: torch.Tensor) -> tuple[float, float]:
    """Return mean and standard deviation of a parameter."""
    owner, _, leaf = name.rpartition(".")
    if leaf == "bias":
        return 0.0, 0.05
    if tensor.dim() == 1:  # scale of a norm
        return 1.0, 0.05
    if "embedding.weight" in name:
        return 0.0, 1.0 if "token" in name else 0.3
    gain = RESIDUAL_GAIN if owner.endswith(RESIDUAL_ENDS) else 1.0
    if owner == "conv_out":
        gain = NOISE_GAIN
    elif owner.endswith("attn2.to_out.0"):
        gain = PROMPT_GAIN
    return 0.0, gain / math.sqrt(tensor[0].numel())


def _digest(parts: Architecture, seed: int) -> str:
    text = json.dumps([dataclasses.asdict(parts), seed], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def save(checkpoint: Checkpoint, output: Path) -> None:
    """Write a checkpoint in the diffusers layout: the folder appears whole or not at all.

    Raises:
        UserError: the folder exists or can't be written.
    """
    from models.assembly import quiet

    temporary = output.with_name(f".{output.name}-{secrets.token_hex(4)}.tmp")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with quiet():
            checkpoint.pipeline().save_pretrained(temporary, safe_serialization=True)
        temporary.rename(output)
    except OSError as error:
        raise UserError(f"--output {output} can't be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def main(argv: list[str]) -> None:
    """Write a random checkpoint as the flags say."""
    config = parse(RandomConfig, argv, "Write a checkpoint with seeded random weights.", EXAMPLES)
    assert config.output is not None  # noqa: S101, RandomConfig refuses None
    print(f"drawing {config.arch} with seed {config.seed}", flush=True)
    checkpoint = random_checkpoint(config.arch, config.seed, config.prediction_type)
    save(checkpoint, config.output)
    written = folder_size(config.output)
    print(f"wrote {config.output}: {size(written)}, {checkpoint.prediction_type}")


if __name__ == "__main__":
    run_script(main)
