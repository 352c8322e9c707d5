"""Checkpoints that are refused, each in one clear line."""

import json
import shutil
import struct
import subprocess
import sys

import pytest
from checkpoint_files import TEXT, UNET, VAE, edit_json, edit_tensors

from models.checkpoint import load_checkpoint
from utils.errors import UserError


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
