"""The diffusers backend: each setting does what it says, and the pictures are the pipeline's own."""

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

import schedulers
from backends.diffusers import DiffusersBackend
from models.random_checkpoint import random_checkpoint
from runtime.quality import psnr
from utils.config import BaselineConfig
from utils.errors import UserError

PROMPT = "a photo of a cat"


def backend(checkpoint=None, **flags):
    config = BaselineConfig(model="random:tiny", output_dir=Path("unused"), **{"steps": 3} | flags)
    return DiffusersBackend(config, random_checkpoint("tiny") if checkpoint is None else checkpoint)


def by_hand(arch="tiny", class_name="PNDMScheduler", seed=3, negative="", **flags):
    """Make a picture as a user of diffusers does: latent and picture."""
    pipe = random_checkpoint(arch).pipeline()
    pipe.scheduler = getattr(diffusers, class_name).from_config(pipe.scheduler.config, **flags.pop("scheduler", {}))
    pipe.set_progress_bar_config(disable=True)
    flags = {"num_inference_steps": 3, "guidance_scale": 7.5, "height": 64, "width": 64} | flags
    results = {}
    for kind in ("latent", "np"):
        generator = torch.Generator("cpu").manual_seed(seed)
        results[kind] = pipe(PROMPT, negative_prompt=negative, generator=generator, output_type=kind, **flags).images
    return results["latent"][0].numpy(), results["np"][0]


def assert_same(made, expected):
    latent, picture = expected
    assert np.abs(made.latent - latent).max() < 1e-4 * np.abs(latent).max()
    assert np.abs(made.picture - picture * 255).max() < 1
    assert made.picture.std() > 10


@pytest.mark.parametrize("label", schedulers.LABELS)
def test_every_sampler_is_diffusers_own_class(label):
    classes = {
        "ddim": "DDIMScheduler",
        "pndm": "PNDMScheduler",
        "euler": "EulerDiscreteScheduler",
        "euler-ancestral": "EulerAncestralDiscreteScheduler",
        "dpmpp-2m": "DPMSolverMultistepScheduler",
    }
    assert_same(backend(scheduler_label=label).generate(PROMPT, "", 3), by_hand(class_name=classes[label]))


def test_default_sampler_negative_prompt_and_size():
    made = backend(random_checkpoint("tiny-sd2"), height=72, width=104).generate(PROMPT, "a dog", 4)
    expected = by_hand("tiny-sd2", "DDIMScheduler", 4, "a dog", height=72, width=104)
    assert made.picture.shape == (72, 104, 3)
    assert_same(made, expected)


def test_karras_sigmas_by_name():
    expected = by_hand(class_name="DPMSolverMultistepScheduler", scheduler={"use_karras_sigmas": True})
    assert_same(backend(scheduler_label="DPM++ 2M Karras").generate(PROMPT, "", 3), expected)


def test_guidance_of_1_or_less_is_none():
    made = backend(guidance_scale=1.0).generate(PROMPT, "a dog", 3)
    assert_same(made, by_hand(guidance_scale=1.0))
    assert np.array_equal(made.picture, backend(guidance_scale=0.0).generate(PROMPT, "", 3).picture)


def test_seed_decides():
    model = backend()
    one, other, again = (model.generate(PROMPT, "", seed).picture for seed in (1, 2, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_times_are_of_each_step_and_prompts_are_encoded_once():
    model = backend(steps=4, scheduler_label="euler")
    calls = []
    model.pipe.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    first, second = (model.generate(PROMPT, "", seed) for seed in (0, 1))
    assert [phase.name for phase in first.phases] == ["text", "step 1", "step 2", "step 3", "step 4", "decode"]
    ends = [moment for phase in first.phases for moment in (phase.start, phase.end)]
    assert ends == sorted(ends) and min(phase.seconds for phase in first.phases) > 0
    assert len(calls) == 2  # the prompt and the empty negative prompt
    assert second.text.seconds < first.text.seconds


def test_math_attention_is_set_everywhere_and_changes_only_rounding():
    model = backend(attention="math")
    assert {type(p).__name__ for p in model.pipe.unet.attn_processors.values()} == {"AttnProcessor"}
    assert {type(p).__name__ for p in model.pipe.vae.attn_processors.values()} == {"AttnProcessor"}
    assert model.pipe.text_encoder.config._attn_implementation == "eager"
    assert_same(model.generate(PROMPT, "", 3), by_hand())


def test_sdpa_and_channels_last_are_the_default():
    model = backend()
    assert {type(p).__name__ for p in model.pipe.unet.attn_processors.values()} == {"AttnProcessor2_0"}
    assert model.pipe.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert model.pipe.vae.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("label", ["ddim", "euler-ancestral"])
def test_pictures_of_a_batch_are_those_of_their_seeds(label):
    model = backend(scheduler_label=label)
    both = model.generate(PROMPT, "", 3, count=2)
    for i, latent in enumerate(both.latents):
        assert psnr(model.generate(PROMPT, "", 3 + i).latent, latent) > 80
    assert both.pictures.shape[0] == 2 and not np.array_equal(*both.pictures)


def test_token_merging_changes_the_picture_with_its_ratio():
    plain, half, little = (
        backend(**flags).generate(PROMPT, "", 3).latent
        for flags in ({}, {"apply_tome": True}, {"apply_tome": True, "tome_ratio": 0.1})
    )
    assert 0 < np.abs(little - plain).mean() < np.abs(half - plain).mean()


def test_compile_is_set_on_the_unet():
    assert backend(compile=True).pipe.unet._compiled_call_impl is not None
    assert backend().pipe.unet._compiled_call_impl is None


def test_compile_without_a_compiler(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match=r"--compile needs a C\+\+ compiler"):
        backend(compile=True)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_keeps_the_noise_of_a_seed(dtype):
    """The ancestral sampler draws at each step: drawn in half precision, its pictures would be others."""
    flags = {"scheduler_label": "euler-ancestral", "steps": 5, "guidance_scale": 1.0}
    model = backend(dtype=dtype, **flags)
    assert {p.dtype for p in model.pipe.unet.parameters()} == {getattr(torch, dtype)}
    half, exact = model.generate(PROMPT, "", 3).latent, backend(**flags).generate(PROMPT, "", 3).latent
    error = np.abs(half - exact).max() / np.abs(exact).max()
    assert 1e-5 < error < 0.05


def test_threads():
    before = torch.get_num_threads()
    try:
        backend(num_threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_nan_is_told():
    checkpoint = random_checkpoint("tiny")
    checkpoint.unet.conv_out.bias[0] = float("nan")
    with pytest.raises(UserError, match="the latent has NaN or Inf; try another --scheduler-label"):
        backend(checkpoint).generate(PROMPT, "", 3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"device": "cuda"}, "--device cuda: PyTorch finds no CUDA GPU here; use --device cpu"),
        ({"attention": "xformers"}, "--attention xformers: the package xformers is not installed"),
        ({"scheduler_label": "eular"}, r"--scheduler-label 'eular' is unknown \(did you mean euler\?\)"),
    ],
)
def test_what_is_not_to_be_had_here(flags, message, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=message):
        backend(**flags)
