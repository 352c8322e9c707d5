"""A checkpoint in memory: its modules and configs, checked against each other."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
import transformers
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from models.layout import one_line
from models.vocabulary import tokenizer_json
from utils.errors import UserError

if TYPE_CHECKING:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

MODEL_CLASSES = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
UNSUPPORTED_UNET = ("class_embed_type", "addition_embed_type", "encoder_hid_dim", "time_cond_proj_dim")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model of Stable Diffusion 1.x or 2.x.

    ``digest`` is a hexadecimal SHA-256 over configs and weights. The three modules are in evaluation mode, float32,
    without gradients, with scaled-dot-product attention. ``tokenizer_json`` gives every prompt the same number of ids.
    ``scheduler_config`` is scheduler_config.json as StableDiffusionPipeline corrects it.
    """

    name: str
    digest: str
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    tokenizer: CLIPTokenizer
    tokenizer_json: str
    scheduler_config: dict[str, Any]
    default_prompt: str | None

    @property
    def latent_scale(self) -> int:
        """Pixels per latent pixel."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def latent_channels(self) -> int:
        """Channels of the latent."""
        return self.vae.config.latent_channels

    @property
    def vae_scaling_factor(self) -> float:
        """What the encoder's latent is multiplied by: 0.18215 unless the config says otherwise."""
        return self.vae.config.scaling_factor

    @property
    def prediction_type(self) -> str:
        """What the UNet predicts: epsilon, v_prediction or sample."""
        return self.scheduler_config.get("prediction_type", "epsilon")

    @property
    def height(self) -> int:
        """Default height of a picture in pixels."""
        return _pair(self.unet.config.sample_size)[0] * self.latent_scale

    @property
    def width(self) -> int:
        """Default width of a picture in pixels."""
        return _pair(self.unet.config.sample_size)[1] * self.latent_scale

    def size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Return height and width in pixels, the default where they are not given."""
        return self.height if height is None else height, self.width if width is None else width

    def latent_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the latent's height and width for a picture's, in pixels.

        Raises:
            UserError: the VAE can't make a picture of this size.
        """
        for flag, value in (("--height", height), ("--width", width)):
            if value % self.latent_scale:
                raise UserError(f"{flag} must be a multiple of {self.latent_scale} for this model, not {value}")
        return height // self.latent_scale, width // self.latent_scale

    def pipeline(self) -> StableDiffusionPipeline:
        """Return diffusers' pipeline over the same modules, without safety checker."""
        scheduler = _scheduler_class(self.scheduler_config).from_config(self.scheduler_config)
        return _pipeline(self.text_encoder, self.tokenizer, self.unet, self.vae, scheduler)


def make_checkpoint(
    *,
    name: str,
    digest: str,
    text_encoder: CLIPTextModel,
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    scheduler_config: dict[str, Any],
    default_prompt: str | None,
) -> Checkpoint:
    """Check that the parts fit each other and make them a checkpoint.

    Raises:
        UserError: naming the two parts that don't fit, or a feature outside of Stable Diffusion 1.x and 2.x.
    """
    _check_parts(name, text_encoder, unet, vae, tokenizer)
    tokenizer.model_max_length = min(tokenizer.model_max_length, text_encoder.config.max_position_embeddings)
    for module in (text_encoder, unet, vae):
        module.eval().requires_grad_(False)
    text_encoder.set_attn_implementation("sdpa")
    unet.set_attn_processor(AttnProcessor2_0())
    vae.set_attn_processor(AttnProcessor2_0())
    scheduler_config = _corrected(scheduler_config, text_encoder, tokenizer, unet, vae)
    json = tokenizer_json(tokenizer)
    return Checkpoint(name, digest, text_encoder, unet, vae, tokenizer, json, scheduler_config, default_prompt)


def build_module(component: str, config: dict[str, Any], where: str) -> torch.nn.Module:
    """Make the component's module on the meta device: shapes without memory.

    Raises:
        UserError: the config does not describe such a module; the message begins with ``where``.
    """
    try:
        with torch.device("meta"):
            if component == "text_encoder":
                return CLIPTextModel(CLIPTextConfig.from_dict(config))
            return MODEL_CLASSES[component].from_config(config)
    except Exception as error:  # whatever a wrong value hits first inside the libraries
        raise UserError(
            f"{where} does not describe a {component} ({one_line(error)}); download or copy it again"
        ) from None


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """Load a CLIP tokenizer from tokenizer.json, or vocab.json and merges.txt.

    Raises:
        UserError: the files can't be read as one.
    """
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library raises no narrower class
        raise UserError(f"{folder} holds no CLIP tokenizer ({one_line(error)}); download or copy it again") from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back the libraries' notes on config keys and deprecations, which the user can't mend, and their bars."""
    libraries = (diffusers.utils.logging, transformers.utils.logging)
    states = [(library, library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    try:
        for library in libraries:
            library.set_verbosity_error()
            library.disable_progress_bar()
        yield
    finally:
        for library, level, had_bars in states:
            library.set_verbosity(level)
            if had_bars:
                library.enable_progress_bar()


def _check_parts(
    name: str, text: CLIPTextModel, unet: UNet2DConditionModel, vae: AutoencoderKL, tokenizer: Any
) -> None:
    unsupported = [key for key in UNSUPPORTED_UNET if unet.config.get(key) is not None]
    if unsupported:
        raise UserError(
            f"--model {name}: a UNet with {unsupported[0]} is not supported; give an SD 1.x or 2.x checkpoint"
        )
    pairs = (
        ("unet in_channels", unet.config.in_channels, "vae latent_channels", vae.config.latent_channels),
        ("unet out_channels", unet.config.out_channels, "vae latent_channels", vae.config.latent_channels),
        (
            "unet cross_attention_dim",
            unet.config.cross_attention_dim,
            "text_encoder hidden_size",
            text.config.hidden_size,
        ),
    )
    for left, found, right, expected in pairs:
        if found != expected:
            raise UserError(
                f"--model {name}: {left} is {found}, but {right} is {expected}; not an SD text-to-image model"
            )
    if len(tokenizer) > text.config.vocab_size:
        entries = f"{len(tokenizer)} entries, text_encoder vocab_size is {text.config.vocab_size}"
        raise UserError(f"--model {name}: the tokenizer has {entries}; take both from one checkpoint")


def _scheduler_class(config: dict[str, Any]) -> Any:
    name = str(config.get("_class_name"))
    scheduler_class = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if scheduler_class is None:
        raise UserError(
            f"scheduler_config.json: _class_name {name} is no scheduler of diffusers; name one of its classes"
        )
    return scheduler_class


def _pipeline(text: Any, tokenizer: Any, unet: Any, vae: Any, scheduler: Any) -> StableDiffusionPipeline:
    with quiet():
        from diffusers import StableDiffusionPipeline  # whose import warns about torchvision, which nothing here uses

        return StableDiffusionPipeline(
            vae=vae,
            text_encoder=text,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def _corrected(config: dict[str, Any], text: Any, tokenizer: Any, unet: Any, vae: Any) -> dict[str, Any]:
    """Apply what StableDiffusionPipeline corrects in old configs: steps_offset, clip_sample and the sample_size."""
    scheduler = _scheduler_class(config).from_config(config)
    before = dict(scheduler.config)
    after = dict(_pipeline(text, tokenizer, unet, vae, scheduler).scheduler.config)
    return config | {key: value for key, value in after.items() if key in before and value != before[key]}


def _pair(size: int | list[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
