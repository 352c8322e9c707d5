"""Random checkpoints: seeded, of order 1, in the diffusers layout, with a tokenizer that works."""

import json

import pytest
import torch

from models.architectures import ARCHITECTURES
from models.assembly import build_module, make_checkpoint
from models.checkpoint import load_checkpoint
from models.random_checkpoint import main, random_checkpoint, save
from models.vocabulary import byte_characters, merges, random_tokenizer
from utils.errors import UserError

TINY = ["tiny", "tiny-sd2"]
ALL = list(ARCHITECTURES)
MODULES = ("text_encoder", "unet", "vae")


def context(checkpoint, prompt):
    ids = checkpoint.tokenizer(prompt, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return checkpoint.text_encoder(ids)[0]


def tensors(checkpoint):
    return {f"{part}.{k}": v for part in MODULES for k, v in getattr(checkpoint, part).state_dict().items()}


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def test_same_seed_same_weights_and_digest():
    one, again = random_checkpoint("tiny", 5), random_checkpoint("tiny", 5)
    assert same(tensors(one), tensors(again))
    assert one.digest == again.digest


def test_another_seed_changes_every_tensor_and_the_digest():
    one, other = random_checkpoint("tiny", 5), random_checkpoint("tiny", 6)
    assert one.digest != other.digest
    other_tensors = tensors(other)
    assert not any(torch.equal(value, other_tensors[name]) for name, value in tensors(one).items())


def test_digest_names_architecture_and_prediction_type():
    digests = {random_checkpoint(arch).digest for arch in TINY} | {random_checkpoint("tiny", 0, "v_prediction").digest}
    assert len(digests) == 3
    assert all(len(digest) == 64 and int(digest, 16) for digest in digests)


def test_seed_0_is_the_one_that_the_model_flag_takes():
    assert load_checkpoint("random:tiny").digest == random_checkpoint("tiny", 0).digest
    assert load_checkpoint("random:tiny").name == "random:tiny"


@pytest.mark.parametrize("arch", TINY)
@pytest.mark.parametrize("size", [(8, 8), (9, 13)])
def test_outputs_are_of_order_1(arch, size):
    checkpoint = random_checkpoint(arch)
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(1, 4, *size, generator=generator)
    text = context(checkpoint, "a photo of a cat")
    eps = checkpoint.unet(latent, torch.tensor([500.0]), text)[0]
    picture = checkpoint.vae.decode(latent)[0]
    encoded = checkpoint.vae.encode(torch.rand(1, 3, 8 * size[0], 8 * size[1], generator=generator) * 2 - 1)[0].mean
    for value in (text, eps, picture, encoded):
        assert 0.3 < value.std() < 2
    assert (picture.abs() < 1).float().mean() > 0.8


@pytest.mark.parametrize("arch", TINY)
def test_prompt_timestep_and_latent_all_show_in_the_unet_output(arch):
    checkpoint = random_checkpoint(arch)
    generator = torch.Generator().manual_seed(2)
    latent, other_latent = torch.randn(2, 1, 4, 8, 8, generator=generator)
    text, other_text = context(checkpoint, "a red circle"), context(checkpoint, "a dog on mars")
    eps = checkpoint.unet(latent, torch.tensor([800.0]), text)[0]
    for changed in (
        checkpoint.unet(other_latent, torch.tensor([800.0]), text)[0],
        checkpoint.unet(latent, torch.tensor([10.0]), text)[0],
        checkpoint.unet(latent, torch.tensor([800.0]), other_text)[0],
    ):
        assert (eps - changed).std() > 0.05


def test_a_small_change_of_the_latent_stays_small():
    checkpoint = random_checkpoint("tiny")
    latent, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    text = context(checkpoint, "")
    change = checkpoint.unet(latent + 1e-3 * noise, 500, text)[0] - checkpoint.unet(latent, 500, text)[0]
    assert 1e-4 < change.std() < 3e-3


def test_tiny_is_tiny_and_has_both_kinds_of_attention():
    sd1, sd2 = random_checkpoint("tiny"), random_checkpoint("tiny-sd2")
    for checkpoint in (sd1, sd2):
        assert sum(p.numel() for part in MODULES for p in getattr(checkpoint, part).parameters()) < 600_000
        assert (checkpoint.height, checkpoint.width, checkpoint.latent_scale) == (64, 64, 8)
    assert (sd1.prediction_type, sd2.prediction_type) == ("epsilon", "v_prediction")
    projection = "down_blocks.0.attentions.0.proj_in"
    assert isinstance(sd1.unet.get_submodule(projection), torch.nn.Conv2d)
    assert isinstance(sd2.unet.get_submodule(projection), torch.nn.Linear)
    assert {b.attentions[0].transformer_blocks[0].attn1.heads for b in sd2.unet.down_blocks[:2]} == {1, 2}


@pytest.mark.parametrize(("arch", "billions"), [("sd15", 0.86), ("sd21", 0.866)])
def test_full_size_unets_have_their_published_size(arch, billions):
    unet = build_module("unet", ARCHITECTURES[arch].unet, arch)
    assert sum(p.numel() for p in unet.parameters()) / 1e9 == pytest.approx(billions, abs=0.001)
    text = build_module("text_encoder", ARCHITECTURES[arch].text_encoder, arch)
    assert sum(p.numel() for p in text.parameters()) == {"sd15": 123_060_480, "sd21": 340_387_840}[arch]
    vae = build_module("vae", ARCHITECTURES[arch].vae, arch)
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863


@pytest.mark.parametrize("arch", ALL)
def test_ids_fit_the_vocabulary(arch):
    config = ARCHITECTURES[arch].text_encoder
    tokenizer = random_tokenizer(config["vocab_size"], 77, ARCHITECTURES[arch].pad_token)
    ids = tokenizer("every letter, \u00e9 and \U0001f680! 123 the photo", padding="max_length").input_ids
    assert len(tokenizer) == config["vocab_size"]
    assert max(ids) == config["eos_token_id"] == config["vocab_size"] - 1
    assert ids[0] == config["bos_token_id"]


def test_real_ids_of_the_byte_level_vocabulary():
    """The first 512 ids and the special ones are those of CLIP's published vocabulary."""
    tokenizer = random_tokenizer(49408, 77, "!")
    assert tokenizer("q!").input_ids == [49406, 336, 0, 49407]  # q</w>; ! is the padding token
    assert random_tokenizer(49408, 77, "<|endoftext|>")("q!").input_ids == [49406, 336, 256, 49407]
    assert len(set(byte_characters())) == 256
    assert tokenizer.convert_ids_to_tokens([0, 1, 255, 256, 511, 512]) == ["!", '"', "Ń", "!</w>", "Ń</w>", "an</w>"]


def test_merges_make_words_single_tokens():
    tokenizer = random_tokenizer(640, 77, "<|endoftext|>")
    assert [tokenizer.decode([i]) for i in tokenizer("astronaut riding mars").input_ids[1:-1]] == [
        "astronaut",
        "riding",
        "mars",
    ]
    assert len(set(merges())) == len(merges())


def test_unknown_architecture_lists_the_choices():
    with pytest.raises(UserError, match=r"random:sd1.5: unknown architecture \(did you mean sd15\?\).*tiny, tiny-sd2"):
        load_checkpoint("random:sd1.5")


def test_command_line_writes_what_it_says(tmp_path, capsys):
    output = tmp_path / "new" / "tiny-v"
    main(["--output", str(output), "--seed", "7", "--prediction-type", "v_prediction"])
    loaded = load_checkpoint(str(output))
    assert loaded.prediction_type == "v_prediction"
    assert same(tensors(loaded), tensors(random_checkpoint("tiny", 7)))
    assert "v_prediction" in capsys.readouterr().out
    assert [path.name for path in output.parent.iterdir()] == ["tiny-v"]
    assert json.loads((output / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"
    assert not [path for path in output.rglob("*") if path.suffix in (".bin", ".pt", ".ckpt")]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--arch", "tinny", "--output", "x"], r"--arch tinny: unknown architecture \(did you mean tiny\?\)"),
        (["--arch", "tiny"], "--output is missing"),
        (["--output", "."], "exists already"),
        (["--output", "pyproject.toml/x"], "pyproject.toml is a file"),
        (["--output", "x", "--seed", "-1"], "--seed must be from 0"),
        (["--output", "x", "--prediction-type", "eps"], "--prediction-type 'eps' is unknown.*epsilon, v_prediction"),
        (["--output", "x", "--sede", "1"], r"unknown argument '--sede' \(did you mean --seed\?\)"),
    ],
)
def test_bad_flags(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").touch()
    with pytest.raises(UserError, match=message):
        main(flags)
    assert [path.name for path in tmp_path.iterdir()] == ["pyproject.toml"]


def test_a_save_that_fails_leaves_nothing(tmp_path, monkeypatch):
    checkpoint = random_checkpoint("tiny")

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("diffusers.models.autoencoders.autoencoder_kl.AutoencoderKL.save_pretrained", fail)
    with pytest.raises(UserError, match="No space left on device"):
        save(checkpoint, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_parts_that_do_not_fit_are_refused():
    sd1, sd2 = random_checkpoint("tiny"), random_checkpoint("tiny-sd2")
    parts = {name: getattr(sd1, name) for name in (*MODULES, "tokenizer", "scheduler_config")}
    with pytest.raises(UserError, match="cross_attention_dim is 32, but text_encoder hidden_size is 48"):
        make_checkpoint(name="x", digest="", default_prompt=None, **parts | {"text_encoder": sd2.text_encoder})
    larger = random_tokenizer(641, 77, "!")
    with pytest.raises(UserError, match="tokenizer has 641 entries, text_encoder vocab_size is 640"):
        make_checkpoint(name="x", digest="", default_prompt=None, **parts | {"tokenizer": larger})
