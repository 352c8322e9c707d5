"""Component wrappers against what StableDiffusionPipeline computes with the same parts."""

import pytest
import torch

from models.components import TextEncoder, components, vae_encoder
from models.random_checkpoint import random_checkpoint
from utils.errors import UserError

SIZES = [(64, 64), (72, 104)]  # the second has odd latents at every level
TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=["tiny", "tiny-sd2"])
def checkpoint(request):
    return random_checkpoint(request.param, 3)


def parts(checkpoint, size=(64, 64), batch_size=1):
    return {component.name: component for component in components(checkpoint, *size, batch_size)}


def close(found, expected):
    assert found.shape == expected.shape
    assert expected.std() > 0.01
    assert (found - expected).abs().max() <= TOLERANCE


def call(component, function, **replaced):
    inputs = next(f.inputs for f in component.functions if f.name == function)
    with torch.no_grad():
        return component.module(*(replaced.get(name, value) for name, value in inputs))


@pytest.mark.parametrize("prompt", ["", "a photo of an astronaut", "\U0001f680 caf\u00e9!", "word " * 200])
def test_text_encoder_is_encode_prompt(checkpoint, prompt):
    pipe = checkpoint.pipeline()
    with torch.no_grad():
        expected, _ = pipe.encode_prompt(prompt, "cpu", 1, False)
    ids = pipe.tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    close(call(parts(checkpoint)["text_encoder"], "encode", ids=ids), expected)


def test_text_encoder_takes_batches_and_short_prompts_and_is_causal(checkpoint):
    module = TextEncoder(checkpoint)
    ids = torch.randint(600, (3, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, start = module(ids), module(ids[:, :7])
    assert whole.shape == (3, 20, checkpoint.text_encoder.config.hidden_size)
    assert torch.allclose(whole[:, :7], start, atol=TOLERANCE)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("function", ["guided", "unguided"])
def test_unet_is_the_pipeline_s_call(checkpoint, size, function):
    component = parts(checkpoint, size, batch_size=2)["unet"]
    inputs = dict(next(f.inputs for f in component.functions if f.name == function))
    assert inputs["latent"].shape == (4 if function == "guided" else 2, 4, size[0] // 8, size[1] // 8)
    for timestep in (981, 1):
        with torch.no_grad():
            expected = checkpoint.pipeline().unet(
                inputs["latent"], torch.tensor(timestep), encoder_hidden_states=inputs["context"], return_dict=False
            )[0]
        close(call(component, function, timestep=torch.tensor([float(timestep)])), expected)


@pytest.mark.parametrize("size", SIZES)
def test_vae_decoder_is_decode_and_postprocess(checkpoint, size):
    pipe = checkpoint.pipeline()
    latent = 0.3 * torch.randn(1, 4, size[0] // 8, size[1] // 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        image = pipe.vae.decode(latent / pipe.vae.config.scaling_factor, return_dict=False)[0]
    expected = torch.from_numpy(pipe.image_processor.postprocess(image, output_type="np"))
    found = call(parts(checkpoint, size)["vae_decoder"], "decode", latent=latent)
    assert found.shape == (1, *size, 3)
    assert found.min() >= 0 and found.max() <= 1
    close(found, expected)


@pytest.mark.parametrize("size", SIZES)
def test_vae_encoder_is_preprocess_and_the_scaled_mean(checkpoint, size):
    pipe = checkpoint.pipeline()
    picture = torch.rand(1, *size, 3, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        pixels = pipe.image_processor.preprocess(picture.numpy())
        expected = pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor
    close(call(vae_encoder(checkpoint, *size), "encode", picture=picture), expected)


def test_a_vae_without_quantising_convolutions(checkpoint):
    checkpoint = random_checkpoint("tiny")
    vae = checkpoint.vae
    vae.quant_conv = vae.post_quant_conv = None
    vae.register_to_config(use_quant_conv=False, use_post_quant_conv=False)
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = (vae.decode(latent / vae.config.scaling_factor)[0] * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        mean = vae.encode(2 * expected.permute(0, 3, 1, 2) - 1).latent_dist.mean * vae.config.scaling_factor
    close(call(parts(checkpoint)["vae_decoder"], "decode", latent=latent), expected)
    close(call(vae_encoder(checkpoint, 64, 64), "encode", picture=expected), mean)


def test_functions_shapes_and_order(checkpoint):
    found = {
        c.name: {f.name: [(n, tuple(t.shape)) for n, t in f.inputs] for f in c.functions}
        for c in components(checkpoint, 72, 104, 3)
    }
    width = checkpoint.text_encoder.config.hidden_size
    assert found == {
        "text_encoder": {"encode": [("ids", (1, 77))]},
        "unet": {
            "guided": [("latent", (6, 4, 9, 13)), ("timestep", (1,)), ("context", (6, 77, width))],
            "unguided": [("latent", (3, 4, 9, 13)), ("timestep", (1,)), ("context", (3, 77, width))],
        },
        "vae_decoder": {"decode": [("latent", (1, 4, 9, 13))]},
    }


def test_examples_are_seeded_and_plausible(checkpoint):
    one, again = (parts(checkpoint)["unet"].functions[0].inputs for _ in range(2))
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(one, again, strict=True))
    inputs = dict(one)
    assert 0 <= inputs["timestep"].item() < 1000
    assert 0.5 < inputs["latent"].std() < 1.5
    ids = parts(checkpoint)["text_encoder"].functions[0].inputs[0][1]
    assert ids.dtype == torch.int64 and ids.min() >= 0 and ids.max() < 640 and len(ids.unique()) > 30


def test_modules_share_the_checkpoint_s_parameters_and_hold_no_others(checkpoint):
    every = [*components(checkpoint, 64, 64, 1), vae_encoder(checkpoint, 64, 64)]
    owned = {c.name: {p.data_ptr() for p in c.module.parameters()} for c in every}
    assert owned["text_encoder"] == {p.data_ptr() for p in checkpoint.text_encoder.parameters()}
    assert owned["unet"] == {p.data_ptr() for p in checkpoint.unet.parameters()}
    assert owned["vae_decoder"] | owned["vae_encoder"] == {p.data_ptr() for p in checkpoint.vae.parameters()}
    assert not owned["vae_decoder"] & owned["vae_encoder"]
    assert not any(list(c.module.named_buffers()) for c in every)


@pytest.mark.parametrize("name", ["text_encoder", "unet", "vae_decoder", "vae_encoder"])
@pytest.mark.parametrize("size", SIZES)
def test_export_keeps_attention_whole_and_the_values(checkpoint, name, size):
    every = parts(checkpoint, size) | {"vae_encoder": vae_encoder(checkpoint, *size)}
    component = every[name]
    inputs = tuple(value for _, value in component.functions[0].inputs)
    with torch.no_grad():
        program = torch.export.export(component.module, inputs)
        close(program.module()(*inputs), component.module(*inputs))
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    attention = [t for t in targets if "scaled_dot_product_attention" in t]
    assert len(attention) == {"text_encoder": 2, "unet": 14}.get(name, 1)
    assert not [t for t in targets if "softmax" in t or "to.device" in t]


def test_size_that_the_vae_can_t_make(checkpoint):
    with pytest.raises(UserError, match="--height must be a multiple of 8 for this model, not 60"):
        components(checkpoint, 60, 64, 1)
    with pytest.raises(UserError, match="--width must be a multiple of 8 for this model, not 60"):
        vae_encoder(checkpoint, 64, 60)
