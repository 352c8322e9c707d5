"""Samplers by name, and configs of other scheduler classes read as diffusers' from_config reads them."""

from __future__ import annotations

import dataclasses
import inspect
import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from schedulers import LABELS, SAMPLER_NAMES, NoiseGenerator, as_in_pipeline, create, default_label, resolve_label
from utils.errors import UserError

diffusers.logging.set_verbosity_error()
torch.manual_seed(0)
START = torch.randn(1, 4, 3, 3)
CLASS_NAMES = {
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
    "dpmpp-2m": "DPMSolverMultistepScheduler",
}
# Keys that a diffusers class has and we do not: without effect unless a key that we refuse is set.
INERT = {"dpmpp-2m": {"flow_shift", "time_shift_type"}}
# The config that Stable Diffusion 1.5 comes with.
SD15 = {
    "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "beta_start": 0.00085, "clip_sample": False, "num_train_timesteps": 1000, "set_alpha_to_one": False,
    "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None,
}  # fmt: skip
SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
# The keys of one class, some of which mean nothing to another.
FOREIGN = {
    "sd15": SD15,
    "sd21": {**SD15, "_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
    "karras": {**SD15, "_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True, "sigma_min": 0.1},
    "unipc": {"_class_name": "UniPCMultistepScheduler", "solver_type": "bh2", "solver_order": 3, **SCALED},
    "lms": {"_class_name": "LMSDiscreteScheduler", "timestep_spacing": "trailing", **SCALED},
    "ddpm": {"_class_name": "DDPMScheduler", "variance_type": "fixed_small", "clip_sample_range": 3.0, **SCALED},
    "unknown keys": {**SD15, "_class_name": "MyScheduler", "my_key": [1, 2], "_private": 7},
    "written by a class": dict(diffusers.PNDMScheduler(steps_offset=1, skip_prk_steps=True).config),
    "ddim that left defaults": dict(diffusers.DDIMScheduler(**SCALED).config),
    "empty": {},
}
FOREIGN_CASES = [(label, name) for label in LABELS for name in FOREIGN if (label, name) != ("dpmpp-2m", "ddpm")]


def final_of_diffusers(scheduler: Any, steps: int) -> np.ndarray:
    scheduler.set_timesteps(steps)
    x = START * scheduler.init_noise_sigma
    ancestral = isinstance(scheduler, diffusers.EulerAncestralDiscreteScheduler)
    extra = {"generator": torch.Generator("cpu").manual_seed(1)} if ancestral else {}
    for t in scheduler.timesteps:
        x = scheduler.step(0.8 * scheduler.scale_model_input(x, t) + t / 3000, t, x, **extra).prev_sample
    return x.numpy()


def final_of_ours(name: str, config: Mapping[str, Any], steps: int) -> np.ndarray:
    scheduler = create(name, config)
    scheduler.set_timesteps(steps)
    x, noise = START.numpy() * np.float32(scheduler.init_noise_sigma), NoiseGenerator(1)
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(0.8 * scheduler.scale_model_input(x, i) + float(t) / 3000, i, x, noise)
    return x


def assert_close(expected: np.ndarray, actual: np.ndarray) -> None:
    assert np.abs(expected - actual).max() <= 1e-5 * max(np.abs(expected).max(), 1)


@pytest.mark.parametrize(("label", "name"), FOREIGN_CASES)
def test_from_config_of_another_class(label: str, name: str) -> None:
    theirs = getattr(diffusers, CLASS_NAMES[label]).from_config(dict(FOREIGN[name]))
    assert_close(final_of_diffusers(theirs, 7), final_of_ours(label, FOREIGN[name], 7))


@pytest.mark.parametrize("label", LABELS)
def test_settings_have_the_names_and_defaults_of_diffusers(label: str) -> None:
    parameters = dict(inspect.signature(getattr(diffusers, CLASS_NAMES[label]).__init__).parameters)
    expected = {name: p.default for name, p in parameters.items() if name not in {"self", *INERT.get(label, ())}}
    settings = dataclasses.asdict(create(label, {}).settings)  # type: ignore[call-overload]
    if label == "dpmpp-2m":  # no parameters of this class, but it reads them from another one's config
        assert settings.pop("sigma_min") is None and settings.pop("sigma_max") is None
    assert settings == expected


@pytest.mark.parametrize("clip_sample", [True, False])
@pytest.mark.parametrize("label", LABELS)
def test_as_in_pipeline_equals_the_pipeline(label: str, clip_sample: bool) -> None:
    config = {"_class_name": CLASS_NAMES[label], **SCALED, "timestep_spacing": "leading", "skip_prk_steps": True}
    config["clip_sample"] = clip_sample
    pipeline = diffusers.StableDiffusionPipeline(
        vae=None, text_encoder=None, tokenizer=None, unet=None, safety_checker=None, feature_extractor=None,
        scheduler=getattr(diffusers, CLASS_NAMES[label]).from_config(config), requires_safety_checker=False,
    )  # fmt: skip
    expected = final_of_diffusers(pipeline.scheduler, 7)
    assert_close(expected, final_of_ours(label, as_in_pipeline(config), 7))
    assert np.abs(expected - final_of_ours(label, config, 7)).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "label"),
    [
        *[(label, label) for label in LABELS],
        *[(class_name, label) for label, class_name in CLASS_NAMES.items()],
        *[(sampler, label) for label, sampler in SAMPLER_NAMES.items()],
        ("plms", "pndm"),
        ("EULER A", "euler-ancestral"),
        (" dpm++  2m ", "dpmpp-2m"),
        ("DPM++ 2M Karras", "dpmpp-2m"),
        ("eulerdiscretescheduler", "euler"),
    ],
)
def test_names(name: str, label: str) -> None:
    assert resolve_label(name) == label
    assert create(name, SD15).label == label


@pytest.mark.parametrize("name", ["", "eular", "DPM++ 2M SDE", "ddim Karras", "UniPCMultistepScheduler"])
def test_unknown_names_list_the_choices(name: str) -> None:
    with pytest.raises(UserError, match=r"--scheduler-label .*ddim, pndm, euler, euler-ancestral, dpmpp-2m") as caught:
        resolve_label(name)
    assert ("did you mean euler?" in str(caught.value)) == (name == "eular")


def test_karras_by_name() -> None:
    config = {**SD15, "_use_default_values": ["use_karras_sigmas"]}
    scheduler = create("DPM++ 2M Karras", config)
    theirs = diffusers.DPMSolverMultistepScheduler.from_config(SD15, use_karras_sigmas=True)
    assert_close(final_of_diffusers(theirs, 7), final_of_ours("dpm++ 2m karras", config, 7))
    assert np.abs(final_of_ours("DPM++ 2M", config, 7) - final_of_ours("DPM++ 2M Karras", config, 7)).max() > 1e-3
    assert scheduler.sampler_name == "DPM++ 2M Karras"
    assert create("Euler", {"use_karras_sigmas": True}).sampler_name == "Euler Karras"


@pytest.mark.parametrize("label", LABELS)
def test_sampler_name_leads_back(label: str) -> None:
    assert create(label, SD15).sampler_name == SAMPLER_NAMES[label]
    assert resolve_label(SAMPLER_NAMES[label]) == label


@pytest.mark.parametrize("label", LABELS)
def test_default_label(label: str) -> None:
    assert default_label({"_class_name": CLASS_NAMES[label]}) == label


@pytest.mark.parametrize("config", [{}, {"_class_name": "HeunDiscreteScheduler"}])
def test_no_default_for_other_classes(config: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"_class_name (None|Heun\w+) has no counterpart.*--scheduler-label from: ddim"):
        default_label(config)


@pytest.mark.parametrize(
    ("label", "config", "words"),
    [
        ("ddim", {"prediction_type": "flow_prediction"}, "prediction_type 'flow_prediction' is unknown"),
        ("pndm", {"prediction_type": "sample"}, "prediction_type 'sample' is unknown.*epsilon, v_prediction"),
        ("euler-ancestral", {"prediction_type": "sample"}, "prediction_type 'sample' is unknown"),
        ("euler", {"beta_schedule": "sigmoid"}, "beta_schedule"),
        ("ddim", {"timestep_spacing": "leding"}, "timestep_spacing .*did you mean leading"),
        ("euler", {"use_beta_sigmas": True}, "use_beta_sigmas True is not supported"),
        ("euler", {"use_karras_sigmas": True, "use_exponential_sigmas": True}, "exclude each other"),
        ("euler", {"sigma_min": 0.0}, "sigma_min must be above 0"),
        ("euler", {"final_sigmas_type": "one"}, "final_sigmas_type"),
        ("euler", {"interpolation_type": "cubic"}, "interpolation_type"),
        ("euler", {"timestep_type": "other"}, "timestep_type"),
        ("dpmpp-2m", {"algorithm_type": "sde-dpmsolver++"}, "algorithm_type"),
        ("dpmpp-2m", {"algorithm_type": "dpmsolver"}, "algorithm_type"),
        ("dpmpp-2m", {"solver_type": "rk4"}, "solver_type"),
        ("dpmpp-2m", {"solver_order": 4}, "solver_order must be 1, 2 or 3, not 4"),
        ("dpmpp-2m", {"use_lu_lambdas": True}, "use_lu_lambdas"),
        ("dpmpp-2m", {"use_flow_sigmas": True}, "use_flow_sigmas"),
        ("dpmpp-2m", {"use_dynamic_shifting": True}, "use_dynamic_shifting"),
        ("dpmpp-2m", {"variance_type": "learned_range"}, "variance_type"),
        ("ddim", {"num_train_timesteps": 0}, "num_train_timesteps must be 1 or more"),
        ("ddim", {"num_train_timesteps": 10.5}, "num_train_timesteps must be of type int, not 10.5"),
        ("ddim", {"num_train_timesteps": float("inf")}, "num_train_timesteps must be of type int, not inf"),
        ("ddim", {"steps_offset": -1}, "steps_offset must be 0 or more"),
        ("ddim", {"beta_start": "0.1"}, "beta_start must be of type float"),
        ("ddim", {"beta_start": float("nan")}, "beta_start must be of type float"),
        ("ddim", {"beta_end": 1.5}, "beta_start and beta_end must give betas above 0 and at most 1"),
        ("ddim", {"beta_start": -0.1, "beta_schedule": "scaled_linear"}, "must not be negative"),
        ("ddim", {"trained_betas": [0.1, 0.2]}, "trained_betas has 2 values, num_train_timesteps is 1000"),
        ("ddim", {"trained_betas": [0.1, "x"], "num_train_timesteps": 2}, "trained_betas must be of type float"),
        ("ddim", {"trained_betas": [0.1, 0.0], "num_train_timesteps": 2}, "trained_betas must give betas above 0"),
        ("euler", {"trained_betas": [0.1, 1.0], "num_train_timesteps": 2}, "no signal at the last timestep"),
        ("ddim", {"clip_sample": None}, "clip_sample must be of type bool"),
        ("ddim", {"dynamic_thresholding_ratio": 1.5}, "dynamic_thresholding_ratio must be from 0 to 1"),
        ("dpmpp-2m", {"sample_max_value": 0}, "sample_max_value must be above 0"),
        ("ddim", {"clip_sample": 1}, "clip_sample must be of type bool"),
    ],
)
def test_what_is_not_supported_is_refused_by_key(label: str, config: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        create(label, config)
    assert "scheduler_config.json" in str(caught.value) and "\n" not in str(caught.value)


def test_a_config_read_from_json_is_accepted() -> None:
    text = '{"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -Infinity, "steps_offset": 1.0}'
    scheduler = create("dpmpp-2m", json.loads(text))
    assert scheduler.settings.steps_offset == 1


def test_nothing_but_numpy_is_imported() -> None:
    code = "import sys, schedulers; print(sorted({'torch', 'diffusers', 'scipy', 'tvm', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
