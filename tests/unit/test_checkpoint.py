"""Loading checkpoints: what is accepted."""

import pickle

import pytest
import torch
from checkpoint_files import TEXT, UNET, VAE, edit_json, edit_tensors
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from models.checkpoint import load_checkpoint
from models.layout import read_header
from utils.errors import UserError

MODULES = ("text_encoder", "unet", "vae")


def assert_same_weights(one, other):
    for part in MODULES:
        expected = getattr(other, part).state_dict()
        found = getattr(one, part).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_equals_what_diffusers_loads(folder):
    ours = load_checkpoint(str(folder))
    theirs = StableDiffusionPipeline.from_pretrained(folder, use_safetensors=True, safety_checker=None)
    assert_same_weights(ours, theirs)
    ids = torch.arange(77)[None]
    assert torch.equal(ours.text_encoder(ids)[0], theirs.text_encoder(ids)[0])
    assert (
        ours.scheduler_config.items()
        <= dict(theirs.scheduler.config).items() | {"_class_name": "PNDMScheduler"}.items()
    )


def test_modules_are_frozen_float32_and_use_sdpa(folder):
    checkpoint = load_checkpoint(str(folder))
    for module in (checkpoint.text_encoder, checkpoint.unet, checkpoint.vae):
        assert not module.training
        assert {p.dtype for p in module.parameters()} == {torch.float32}
        assert not any(p.requires_grad for p in module.parameters())
    assert {type(p).__name__ for p in checkpoint.unet.attn_processors.values()} == {"AttnProcessor2_0"}
    assert checkpoint.text_encoder.config._attn_implementation == "sdpa"


def test_properties(folder):
    edit_json(folder / "unet/config.json", sample_size=[8, 12])
    edit_json(folder / "vae/config.json", scaling_factor=0.5)
    edit_json(folder / "model_index.json", _default_prompt="a green dog")
    checkpoint = load_checkpoint(str(folder))
    assert (checkpoint.height, checkpoint.width) == (64, 96)
    assert (checkpoint.latent_channels, checkpoint.latent_scale, checkpoint.vae_scaling_factor) == (4, 8, 0.5)
    assert checkpoint.default_prompt == "a green dog"
    assert checkpoint.latent_size(72, 104) == (9, 13)
    with pytest.raises(UserError, match="--width must be a multiple of 8 for this model, not 100"):
        checkpoint.latent_size(72, 100)


def test_diffusers_reads_a_folder_with_a_default_prompt(folder):
    edit_json(folder / "model_index.json", _default_prompt="a green dog")
    StableDiffusionPipeline.from_pretrained(folder, use_safetensors=True, safety_checker=None)


def test_defaults_of_a_config_that_says_nothing(folder):
    edit_json(folder / "vae/config.json", scaling_factor=...)
    edit_json(folder / "scheduler/scheduler_config.json", prediction_type=...)
    checkpoint = load_checkpoint(str(folder))
    assert (checkpoint.vae_scaling_factor, checkpoint.prediction_type) == (0.18215, "epsilon")
    assert checkpoint.default_prompt is None


def test_name_is_the_folder_or_the_one_above_a_folder_called_checkpoint(folder):
    assert load_checkpoint(str(folder)).name == "tiny-model"
    moved = folder.parent / "flowers" / "checkpoint"
    moved.parent.mkdir()
    folder.rename(moved)
    assert load_checkpoint(str(moved) + "/").name == "flowers"


def test_digest_is_of_the_content_alone(folder, original):
    digest = load_checkpoint(str(original)).digest
    assert load_checkpoint(str(folder)).digest == digest
    (folder / "README.md").write_text("notes")
    assert load_checkpoint(str(folder)).digest == digest


@pytest.mark.parametrize("part", ["unet/config.json", "model_index.json", "tokenizer/tokenizer.json", "scheduler"])
def test_digest_changes_with_every_config(folder, original, part):
    path = folder / part if part != "scheduler" else folder / "scheduler/scheduler_config.json"
    path.write_text(path.read_text() + " ")
    assert load_checkpoint(str(folder)).digest != load_checkpoint(str(original)).digest


@pytest.mark.parametrize("file", [UNET, VAE, TEXT])
def test_digest_changes_with_one_weight(folder, original, file):
    def change(tensors):
        next(iter(tensors.values())).view(-1)[0] += 1
        return tensors

    edit_tensors(folder / file, change)
    assert load_checkpoint(str(folder)).digest != load_checkpoint(str(original)).digest


def test_text_weights_with_the_prefix_and_positions_of_older_files(folder, original):
    def change(tensors):
        old = {f"text_model.{name}": value for name, value in tensors.items()}
        return old | {"text_model.embeddings.position_ids": torch.arange(77)[None]}

    edit_tensors(folder / TEXT, change)
    assert_same_weights(load_checkpoint(str(folder)), load_checkpoint(str(original)))


def test_vae_attention_names_of_older_files(folder, original):
    names = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}

    def change(tensors):
        return {next((k.replace(a, b) for a, b in names.items() if a in k), k): v for k, v in tensors.items()}

    edit_tensors(folder / VAE, change)
    assert "decoder.mid_block.attentions.0.query.weight" in read_header(folder / VAE)
    assert_same_weights(load_checkpoint(str(folder)), load_checkpoint(str(original)))


def test_half_precision_files_where_there_are_no_plain_ones(folder, original):
    for file in (UNET, TEXT):
        half = {name: value.half() for name, value in load_file(folder / file).items()}
        save_file(half, (folder / file).with_suffix(".fp16.safetensors"))
    assert_same_weights(load_checkpoint(str(folder)), load_checkpoint(str(original)))  # the plain ones come first
    (folder / UNET).unlink()
    checkpoint = load_checkpoint(str(folder))
    exact = load_checkpoint(str(original)).unet.conv_in.weight
    assert checkpoint.unet.conv_in.weight.dtype == torch.float32
    assert torch.equal(checkpoint.unet.conv_in.weight, exact.half().float())
    assert not torch.equal(checkpoint.unet.conv_in.weight, exact)


def test_pickles_beside_safetensors_are_left_alone(folder, monkeypatch):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was loaded",))

    for file in (UNET, VAE):
        (folder / file).with_suffix(".bin").write_bytes(pickle.dumps(Bomb()))
    (folder / "text_encoder/pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    load_checkpoint(str(folder))


@pytest.mark.parametrize(
    ("class_name", "change", "expected"),
    [
        ("PNDMScheduler", {"steps_offset": 0}, {"steps_offset": 1}),
        ("PNDMScheduler", {"steps_offset": ...}, {"steps_offset": 1}),
        ("DDIMScheduler", {"clip_sample": True}, {"clip_sample": False}),
        ("DDIMScheduler", {"clip_sample": ...}, {"clip_sample": False}),
        ("EulerDiscreteScheduler", {"steps_offset": 0}, {"steps_offset": 1}),
        ("DDIMScheduler", {"timestep_spacing": "trailing"}, {"timestep_spacing": "trailing"}),
    ],
)
def test_old_scheduler_configs_are_corrected_as_the_pipeline_corrects_them(folder, class_name, change, expected):
    edit_json(folder / "scheduler/scheduler_config.json", _class_name=class_name, **change)
    edit_json(folder / "model_index.json", scheduler=["diffusers", class_name])
    checkpoint = load_checkpoint(str(folder))
    theirs = StableDiffusionPipeline.from_pretrained(folder, use_safetensors=True, safety_checker=None).scheduler
    assert type(checkpoint.pipeline().scheduler) is type(theirs)
    assert {key: checkpoint.scheduler_config[key] for key in expected} == expected
    assert {key: theirs.config[key] for key in expected} == expected
