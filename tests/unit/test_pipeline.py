import json

import numpy as np
import pytest
from fake_artifact import CHANNELS, LATENT, LENGTH, FakeEngine, calls, write_artifact, write_tokenizer

import schedulers
from runtime.artifact import Artifact, describe
from runtime.pipeline import Pipeline, Request
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("fake_engines")
SHAPE = (CHANNELS, *LATENT)
LABELS = schedulers.LABELS


def pipeline_of(folder, batch=1, **changes):
    return Pipeline(Artifact(write_artifact(folder, batch, **changes)))


def last(steps):
    *_, step = steps
    return step


def latents_of(pipeline, request, seeds):
    """Return the final latents of each seed, made in batches as the script makes them."""
    size = pipeline.batch_size
    batches = [seeds[i : i + size] for i in range(0, len(seeds), size)]
    return np.concatenate([last(pipeline.sample(request, batch)).x_t for batch in batches])


def expected_latents(request, seed, pipeline):
    """The denoising loop for one picture, written out: diffusers' order, the model called for one prompt at a time."""
    scheduler = request.scheduler(pipeline.manifest)
    noise = schedulers.NoiseGenerator(seed)
    x = noise.randn((1, *SHAPE)) * np.float32(scheduler.init_noise_sigma)
    for i, t in enumerate(scheduler.timesteps):
        seen, at = scheduler.scale_model_input(x, i), np.float32([t])
        cond = FakeEngine._unet(seen, at, context_of(request.prompt, pipeline))
        if request.guidance_scale > 1:
            uncond = FakeEngine._unet(seen, at, context_of(request.negative_prompt, pipeline))
            cond = uncond + request.guidance_scale * (cond - uncond)
        x = scheduler.step(cond, i, x, noise)
    return x


def context_of(prompt, pipeline):
    return FakeEngine._text_encoder(pipeline.tokenizer.encode(prompt)).astype(np.float32)


@pytest.mark.parametrize("batch", [1, 3])
def test_guided_batch_is_unconditional_then_conditional(tmp_path, batch):
    pipeline = pipeline_of(tmp_path, batch)
    request = Request(prompt="a", negative_prompt="b", guidance_scale=3.0)
    step = next(pipeline.sample(request, list(range(batch))))
    ((latent, timestep, context),) = calls("unet.")
    assert np.array_equal(latent[:batch], latent[batch:])
    assert timestep.tolist() == [step.timestep]
    for row in range(batch):
        assert np.array_equal(context[row], pipeline.encode("b")[0])
        assert np.array_equal(context[batch + row], pipeline.encode("a")[0])
    uncond, cond = np.split(FakeEngine._unet(latent, timestep, context), 2)
    assert not np.allclose(uncond, cond)
    np.testing.assert_allclose(step.eps, uncond + 3 * (cond - uncond), rtol=1e-5, atol=1e-5)
    assert step.eps.dtype == step.x_t.dtype == np.float32


@pytest.mark.parametrize("guidance", [0, 0.5, 1])
def test_without_guidance_one_call_of_the_batch_and_one_prompt(tmp_path, guidance):
    pipeline = pipeline_of(tmp_path, 2)
    request = Request(prompt="a", negative_prompt="b", guidance_scale=guidance, steps=3)
    steps = list(pipeline.sample(request, [1, 2]))
    assert [name for name, _ in FakeEngine.calls] == ["text_encoder.encode", *["unet.unguided"] * 3]
    for step, (latent, timestep, context) in zip(steps, calls("unet."), strict=True):
        np.testing.assert_allclose(step.eps, FakeEngine._unet(latent, timestep, context), rtol=1e-6)
        assert np.array_equal(context[0], pipeline.encode("a")[0])


def test_first_latents_are_the_seeds_noise(tmp_path):
    pipeline = pipeline_of(tmp_path, 2)
    next(pipeline.sample(Request(prompt="a", scheduler_label="ddim"), [7, 2**64 - 1]))
    ((latent, _, _),) = calls("unet.")
    for row, seed in enumerate([7, 2**64 - 1]):
        assert np.array_equal(latent[row], schedulers.NoiseGenerator(seed).randn((1, *SHAPE))[0])


@pytest.mark.parametrize("guidance", [1, 7.5])
@pytest.mark.parametrize("label", LABELS)
def test_a_picture_is_the_same_in_any_batch(tmp_path, label, guidance):
    request = Request(prompt="a b", negative_prompt="c", steps=5, guidance_scale=guidance, scheduler_label=label)
    seeds = [2**64 - 2, 2**64 - 1, 0, 1]
    for batch in (1, 2, 3):
        pipeline = pipeline_of(tmp_path / str(batch), batch)
        single = [expected_latents(request, seed, pipeline)[0] for seed in seeds]
        for count in (1, 2, 4):
            found = latents_of(pipeline, request, seeds[:count])
            np.testing.assert_allclose(found, single[:count], rtol=1e-4, atol=1e-4 * np.abs(single).max())
    assert np.abs(single[0] - single[1]).max() > 0.1


def test_a_batch_that_is_not_full_repeats_a_picture(tmp_path):
    step = next(pipeline_of(tmp_path, 3).sample(Request(prompt="a", guidance_scale=1), [4]))
    ((latent, _, _),) = calls("unet.")
    assert np.array_equal(latent[1], latent[0]) and np.array_equal(latent[2], latent[0])
    assert step.x_t.shape == step.eps.shape == (1, *SHAPE)


def test_the_negative_prompt_guidance_and_steps_change_the_latents(tmp_path):
    pipeline = pipeline_of(tmp_path)
    base = {"prompt": "a", "negative_prompt": "", "steps": 4, "guidance_scale": 7.5}
    found = [
        latents_of(pipeline, Request(**{**base, **change}), [1])
        for change in ({}, {"prompt": "b"}, {"negative_prompt": "b"}, {"steps": 5}, {"guidance_scale": 7.0})
    ]
    assert all(not np.allclose(found[0], other) for other in found[1:])


def test_a_prompt_is_encoded_once(tmp_path):
    pipeline = pipeline_of(tmp_path)
    request = Request(prompt="a", negative_prompt="b", steps=4)
    latents_of(pipeline, request, [1, 2, 3])
    assert len(calls("unet.")) == 12
    assert len(calls("text_encoder.")) == 2
    with pytest.raises(ValueError, match="read-only"):
        pipeline.encode("a")[:] = 0


@pytest.mark.parametrize(("guidance", "function"), [(7.5, "guided"), (1, "unguided")])
def test_the_prompts_go_to_the_unet_once_a_picture(tmp_path, guidance, function):
    pipeline = pipeline_of(tmp_path)
    requests = [Request(prompt=prompt, steps=5, guidance_scale=guidance) for prompt in ("a", "b", "a")]
    for request in requests:
        latents_of(pipeline, request, [1])
    assert [name for name, _ in FakeEngine.bound] == [f"unet.{function}"] * 3 and len(calls("unet.")) == 15
    for request, (_, fixed) in zip(requests, FakeEngine.bound, strict=True):
        assert list(fixed) == ["context"] and np.array_equal(fixed["context"], pipeline.context(request))


def test_steps_say_where_they_are(tmp_path):
    pipeline = pipeline_of(tmp_path)
    request = Request(prompt="a", steps=4, scheduler_label="pndm")
    scheduler = request.scheduler(pipeline.manifest)
    steps = list(pipeline.sample(request, [1]))
    assert [step.index for step in steps] == [0, 1, 2, 3, 4]  # pndm's warm-up is a step more
    assert [step.count for step in steps] == [5] * 5
    assert [step.timestep for step in steps] == [inputs[1][0] for inputs in calls("unet.")]
    assert [step.timestep for step in steps] == scheduler.timesteps.tolist()
    assert [step.sigma for step in steps] == scheduler.sigmas[:-1].tolist()
    assert all(step.seconds > 0 for step in steps)


def test_the_loop_is_the_callers(tmp_path):
    pipeline = pipeline_of(tmp_path)
    steps = pipeline.sample(Request(prompt="a", steps=9), [1])
    assert calls("unet.") == []
    next(steps)
    next(steps)
    assert len(calls("unet.")) == 2
    steps.close()
    with pytest.raises(StopIteration):
        next(steps)
    assert len(calls("unet.")) == 2


def test_two_runs_at_once_do_not_disturb_each_other(tmp_path):
    pipeline = pipeline_of(tmp_path)
    request = Request(prompt="a", steps=6, scheduler_label="dpmpp-2m")
    alone = latents_of(pipeline, request, [5])
    *_, (one, _) = zip(pipeline.sample(request, [5]), pipeline.sample(request, [6]), strict=True)
    assert np.array_equal(one.x_t, alone)


@pytest.mark.parametrize("count", [0, 3])
def test_seeds_must_fit_the_batch(tmp_path, count):
    with pytest.raises(ValueError, match="batch size of 2"):
        pipeline_of(tmp_path, 2).sample(Request(prompt="a"), [0] * count)


@pytest.mark.parametrize("call", [0, 2, 3])
def test_nan_from_the_unet_stops_after_its_step(tmp_path, call):
    FakeEngine.break_at = ("unet", call)
    steps = pipeline_of(tmp_path).sample(Request(prompt="a", steps=4), [1])
    for _ in range(call):
        assert np.isfinite(next(steps).x_t).all()
    assert np.isnan(next(steps).x_t).any()
    with pytest.raises(UserError, match=rf"unet: .* NaN or Inf at step {call + 1} of 4"):
        next(steps)


def test_infinite_latents_name_the_scheduler(tmp_path, monkeypatch):
    pipeline = pipeline_of(tmp_path)
    scheduler = Request(prompt="a").scheduler(pipeline.manifest)
    monkeypatch.setattr(type(scheduler), "step", lambda self, output, i, x, noise: x + np.inf)
    with pytest.raises(UserError, match="scheduler: 60 of 60 values are NaN or Inf at step 1 of 20"):
        last(pipeline.sample(Request(prompt="a"), [1]))


@pytest.mark.parametrize("component", ["text_encoder", "vae_decoder"])
def test_nan_from_another_component_names_it(tmp_path, component):
    FakeEngine.break_at = (component, 0)
    pipeline = pipeline_of(tmp_path)
    with pytest.raises(UserError, match=f"{component}: .* NaN"):
        pipeline.decode(latents_of(pipeline, Request(prompt="a", steps=1), [1]))


def test_decode_gives_each_picture_its_own(tmp_path):
    latents = np.random.default_rng(0).standard_normal((3, *SHAPE)).astype(np.float32)
    pictures = pipeline_of(tmp_path, 2).decode(latents)
    for picture, latent in zip(pictures, latents, strict=True):
        assert np.array_equal(picture, FakeEngine._vae_decoder(latent[None])[0])


def test_an_artifact_without_a_component_or_function_is_refused(tmp_path):
    components = dict(Artifact(write_artifact(tmp_path / "whole")).manifest.components)
    unet = components.pop("unet")
    with pytest.raises(UserError, match="no unet"):
        pipeline_of(tmp_path / "without", components=components)
    del unet.functions["guided"]
    with pytest.raises(UserError, match="unet has no function guided"):
        pipeline_of(tmp_path / "unguided", components={**components, "unet": unet})


def test_a_tokenizer_of_another_length_is_refused(tmp_path):
    file = write_artifact(tmp_path / "a") / "other.json"
    write_tokenizer(file, LENGTH + 1)
    with pytest.raises(UserError, match="makes 13 tokens, the text encoder takes 12"):
        pipeline_of(tmp_path / "a", tokenizer=describe(file, tmp_path / "a"))


@pytest.mark.parametrize(
    ("component", "function", "change"),
    [
        ("text_encoder", "encode", {"dtype": "int32"}),
        ("text_encoder", "encode", {"shape": [2, LENGTH]}),
        ("unet", "guided", {"name": "latents"}),
        ("unet", "guided", {"shape": [2, CHANNELS, 1, 1]}),
        ("unet", "unguided", {"shape": [0, CHANNELS, *LATENT]}),
        ("unet", "unguided", {"shape": [1]}),
        ("vae_decoder", "decode", {"shape": [1, CHANNELS, 1, 1]}),
    ],
)
def test_functions_of_other_types_are_refused(tmp_path, component, function, change):
    folder = write_artifact(tmp_path / "a")
    path = folder / "manifest.json"
    value = json.loads(path.read_text())
    value["components"][component]["functions"][function]["inputs"][0].update(change)
    path.write_text(json.dumps(value))
    with pytest.raises(UserError, match="build it again"):
        Pipeline(Artifact(folder))


def test_the_decoder_has_the_memory_to_itself(tmp_path, monkeypatch):
    """What the UNet's tensors took is freed before it is called, and what its own took afterwards."""
    order = []
    pipeline = pipeline_of(tmp_path, 2)
    decoder = pipeline.engines["vae_decoder"]
    decode = type(decoder).__call__
    monkeypatch.setattr(type(decoder), "release", lambda self: order.append("release"))
    monkeypatch.setattr(type(decoder), "__call__", lambda *given: order.append(given[1]) or decode(*given))
    pipeline.decode(np.zeros((2, *pipeline.latent_shape), np.float32))
    assert order == ["release", "decode", "decode", "release"]
