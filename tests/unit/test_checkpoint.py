"""Loading checkpoints: what is accepted, what is refused and how it is told."""

import json
import pickle
import shutil
import struct
import subprocess
import sys

import pytest
import tokenizers
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from models.checkpoint import load_checkpoint
from models.layout import read_header
from models.random_checkpoint import random_checkpoint, save
from utils.errors import UserError

MODULES = ("text_encoder", "unet", "vae")
UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original") / "tiny-model"
    save(random_checkpoint("tiny", 1), folder)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "tiny-model")


def edit_json(path, **changes):
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not ...}))


def edit_tensors(path, change):
    save_file(change(load_file(path)), path)


def assert_same_weights(one, other):
    for part in MODULES:
        expected = getattr(other, part).state_dict()
        found = getattr(one, part).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


# What is accepted


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


# What is refused


def remove(*names):
    def damage(folder):
        for name in names:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def edit(file, **changes):
    return lambda folder: edit_json(folder / file, **changes)


def write(file, data):
    return lambda folder: (folder / file).write_bytes(data)


def cut(file, keep):
    def damage(folder):
        data = (folder / file).read_bytes()
        (folder / file).write_bytes(data[:keep] if keep >= 0 else data + b"\0")

    return damage


def tensor(file, name, change):
    def damage(folder):
        def apply(tensors):
            value = change(tensors.pop(name))
            return tensors if value is None else tensors | {name: value}

        edit_tensors(folder / file, apply)

    return damage


def only_pickles(folder):
    (folder / UNET).rename(folder / "unet/diffusion_pytorch_model.bin")


def only_a_ckpt(folder):
    for path in list(folder.iterdir()):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (folder / "v1-5-pruned.ckpt").write_bytes(b"x")


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def header(entry):
    text = json.dumps({"x": entry}).encode()
    return struct.pack("<Q", len(text)) + text + b"\0" * 8


BAD = {
    "missing folder": (shutil.rmtree, r"tiny-model: no such folder; give a folder in the diffusers layout"),
    "empty": (empty, r"tiny-model is empty"),
    "no model_index.json": (remove("model_index.json"), r"tiny-model has no model_index.json"),
    "broken model_index.json": (write("model_index.json", b'{"a": '), r"model_index.json is no JSON"),
    "model_index.json is a list": (write("model_index.json", b"[]"), r"must hold a JSON object, not list"),
    "no unet": (remove("unet"), r"lacks the component unet; it needs text_encoder, tokenizer, unet, vae, scheduler"),
    "no text_encoder": (remove("text_encoder"), r"lacks the component text_encoder"),
    "no tokenizer": (remove("tokenizer"), r"lacks the component tokenizer"),
    "no vae": (remove("vae"), r"lacks the component vae"),
    "no scheduler": (remove("scheduler"), r"lacks the component scheduler"),
    "unet not in the index": (edit("model_index.json", unet=...), r"lacks the component unet"),
    "vae null in the index": (edit("model_index.json", vae=[None, None]), r"lacks the component vae"),
    "no config": (remove("unet/config.json"), r"unet/config.json is missing"),
    "no scheduler config": (remove("scheduler/scheduler_config.json"), r"scheduler_config.json is missing"),
    "no vocabulary": (remove("tokenizer/tokenizer.json"), r"tokenizer/vocab.json is missing"),
    "broken vocabulary": (write("tokenizer/tokenizer.json", b"{}"), r"tokenizer holds no CLIP tokenizer"),
    "no weights": (remove(UNET), rf"{UNET} is missing; the component unet needs its weights"),
    "only a pickle in unet": (only_pickles, r"unet holds only pickles \(diffusion_pytorch_model.bin\)"),
    "only a ckpt": (only_a_ckpt, r"tiny-model holds only pickles \(v1-5-pruned.ckpt\), which are never loaded"),
    "SDXL": (
        edit("model_index.json", _class_name="StableDiffusionXLPipeline", text_encoder_2=["a", "b"]),
        r"is a StableDiffusionXLPipeline, which is not supported",
    ),
    "another VAE": (edit("model_index.json", vae=["diffusers", "AutoencoderTiny"]), r"vae is a AutoencoderTiny, which"),
    "another scheduler": (edit("scheduler/scheduler_config.json", _class_name="X"), r"_class_name X is no scheduler"),
    "LCM": (edit("unet/config.json", time_cond_proj_dim=8), r"lacks the tensor time_embedding.cond_proj.weight"),
    "config of nothing": (
        edit("unet/config.json", block_out_channels=[]),
        r"unet/config.json does not describe a unet",
    ),
    "text config of nothing": (
        edit("text_encoder/config.json", num_attention_heads=5),
        r"text_encoder/config.json does not describe a text_encoder",
    ),
    "truncated data": (cut(UNET, 100_000), rf"{UNET} is truncated: 100000 bytes instead of \d+"),
    "truncated header": (cut(VAE, 1000), rf"{VAE} is truncated inside its header"),
    "nothing but a length": (cut(TEXT, 8), rf"{TEXT} is truncated inside its header"),
    "empty weights": (cut(TEXT, 0), rf"{TEXT} is no safetensors file or was cut short"),
    "one byte more": (cut(UNET, -1), rf"{UNET} is too long"),
    "no safetensors": (write(UNET, b"<!DOCTYPE html>" * 9), rf"{UNET} is no safetensors file"),
    "broken header": (write(UNET, struct.pack("<Q", 4) + b"\xff{{{"), rf"{UNET} has a broken header"),
    "header is a list": (write(UNET, struct.pack("<Q", 2) + b"[]"), rf"{UNET} has a broken header"),
    "contradiction": (
        write(UNET, header({"dtype": "F32", "shape": [3], "data_offsets": [0, 8]})),
        r"broken header \(shape \[3\] doesn't fit its bytes\)",
    ),
    "unknown dtype": (
        write(UNET, header({"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]})),
        r"dtype F8_E4M3 is not supported",
    ),
    "wrong shape": (
        tensor(UNET, "conv_in.weight", lambda x: x[:, :3].contiguous()),
        rf"{UNET}: conv_in.weight has the shape \[16, 3, 3, 3\] instead of \[16, 4, 3, 3\]",
    ),
    "transposed": (
        tensor(TEXT, "embeddings.token_embedding.weight", lambda x: x.T.contiguous()),
        r"embeddings.token_embedding.weight has the shape \[32, 640\] instead of \[640, 32\]",
    ),
    "missing tensor": (
        tensor(VAE, "decoder.conv_out.bias", lambda x: None),
        rf"{VAE} lacks the tensor decoder.conv_out.bias",
    ),
    "config of a wider unet": (
        edit("unet/config.json", cross_attention_dim=48),
        r"attn2.to_k.weight has the shape \[16, 32\]",
    ),
    "config with less layers": (
        edit("text_encoder/config.json", num_hidden_layers=1),
        r"has a tensor that its config does not know: encoder.layers.1.* and 13 more",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_folder_is_one_clear_line(folder, case):
    damage, message = BAD[case]
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_checkpoint(str(folder))
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value) or case == "another scheduler"


def test_what_is_wrong_with_files_is_told_without_torch(folder):
    cut(UNET, 1000)(folder)
    program = f"""
import sys
from models.source import check_model
from utils.errors import UserError
for model in ({str(folder)!r}, "random:x", "model.ckpt", "nothing here"):
    try:
        check_model(model)
    except UserError as error:
        print(error)
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    told = done.stdout.splitlines()
    assert ["truncated" in told[0], "unknown arch" in told[1], "pickle" in told[2], "no such" in told[3]] == [True] * 4


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "pytorch_model.bin", "weights.pth"])
def test_a_pickle_is_refused_unopened(tmp_path, name):
    with pytest.raises(UserError, match=rf"{name} is a pickle, which is never loaded; convert it to .safetensors"):
        load_checkpoint(str(tmp_path / name))


def test_file_of_another_kind(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"x")
    with pytest.raises(UserError, match=r"model\.gguf is no \.safetensors file"):
        load_checkpoint(str(tmp_path / "model.gguf"))


# The tokenizer

AWKWARD = [
    "",
    " ",
    "\n\t ",
    "A Photo of AN astronaut!",
    "it's 've don't 2026 1/2",
    "caf\u00e9 cafe\u0301 \u4f60\u597d \u0130stanbul \u00df",
    "\U0001f680 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
    "<|endoftext|> in <|startoftext|> text !! !",
    "word " * 10_000,
    "x" * 10_000,
    "\0\x01\ufffd\ufeff",
]


@pytest.fixture(scope="module", params=["tiny", "tiny-sd2"])
def pair(request):
    checkpoint = random_checkpoint(request.param)
    return checkpoint.tokenizer, tokenizers.Tokenizer.from_str(checkpoint.tokenizer_json)


def theirs(tokenizer, prompt):
    return tokenizer(prompt, padding="max_length", truncation=True, max_length=77).input_ids


@pytest.mark.parametrize("prompt", AWKWARD, ids=lambda prompt: repr(prompt[:20]))
def test_tokenizer_json_gives_the_ids_of_transformers(pair, prompt):
    ids = pair[1].encode(prompt).ids
    assert ids == theirs(pair[0], prompt)
    assert len(ids) == 77


@given(st.text())
@settings(deadline=None, max_examples=200)
def test_tokenizer_json_gives_the_ids_of_transformers_for_any_text(pair, prompt):
    assert pair[1].encode(prompt).ids == theirs(pair[0], prompt)


def test_padding_is_the_checkpoint_s_own():
    sd1, sd2 = (tokenizers.Tokenizer.from_str(random_checkpoint(arch).tokenizer_json) for arch in ("tiny", "tiny-sd2"))
    assert sd1.encode("").ids == [638] + [639] * 76
    assert sd2.encode("").ids == [638, 639] + [0] * 75


def test_vocabulary_and_merges_files_of_older_checkpoints(folder, original):
    """Stable Diffusion 1.5's tokenizer folder, in the form that it was published in."""
    value = json.loads((folder / "tokenizer/tokenizer.json").read_text())
    shutil.rmtree(folder / "tokenizer")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer/vocab.json").write_text(json.dumps(value["model"]["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in value["model"]["merges"])
    (folder / "tokenizer/merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    added = {"__type": "AddedToken", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    config = {
        "add_prefix_space": False,
        "bos_token": added | {"content": "<|startoftext|>"},
        "do_lower_case": True,
        "eos_token": added | {"content": "<|endoftext|>"},
        "model_max_length": 77,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": added | {"content": "<|endoftext|>"},
    }
    (folder / "tokenizer/tokenizer_config.json").write_text(json.dumps(config))
    new = load_checkpoint(str(original)).tokenizer
    old = tokenizers.Tokenizer.from_str(load_checkpoint(str(folder)).tokenizer_json)
    for prompt in AWKWARD:
        assert old.encode(prompt).ids == theirs(new, prompt)


def test_a_tokenizer_without_a_length_takes_the_text_encoder_s(folder):
    edit_json(folder / "tokenizer/tokenizer_config.json", model_max_length=...)
    assert CLIPTokenizer.from_pretrained(folder / "tokenizer").model_max_length > 77
    checkpoint = load_checkpoint(str(folder))
    assert len(tokenizers.Tokenizer.from_str(checkpoint.tokenizer_json).encode("a dog").ids) == 77
