"""Single-file checkpoints in the layout of the original code, here made from a random checkpoint."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from models import single_file
from models.checkpoint import load_checkpoint
from models.random_checkpoint import random_checkpoint, save
from utils.errors import UserError

MODULES = ("text_encoder", "unet", "vae")
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_name(name, blocks=3, layers=1):
    """Name a UNet tensor as the original code does: blocks are numbered on and on, by what ends a level."""
    owner, leaf = name.rsplit(".", 1)
    if owner in UNET_ENDS:
        return f"{UNET_ENDS[owner]}.{leaf}"
    match = re.fullmatch(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", owner)
    if match:
        side, level, kind, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        if kind == "downsamplers":
            return f"input_blocks.{(level + 1) * (layers + 1)}.0.op.{leaf}"
        if kind == "upsamplers":
            place = f"output_blocks.{(level + 1) * (layers + 1) - 1}"
            return f"{place}.{2 if level else 1}.conv.{leaf}"  # the first level has no attention
        place = f"input_blocks.{1 + level * (layers + 1) + index}"
        if side == "up":
            place = f"output_blocks.{level * (layers + 1) + index}"
        return f"{place}.0.{RESNET[rest]}.{leaf}" if kind == "resnets" else f"{place}.1.{rest}.{leaf}"
    match = re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", owner)
    if match[1] == "resnets":
        return f"middle_block.{2 * int(match[2])}.{RESNET[match[3]]}.{leaf}"
    return f"middle_block.1.{match[3]}.{leaf}"


def vae_name(name, blocks=4):
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    for new, old in VAE_ATTENTION.items():
        name = name.replace(f"mid_block.attentions.0.{new}.", f"mid.attn_1.{old}.")
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", name)
    return re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{blocks - 1 - int(m[1])}.block", name)


OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.": "ln_final.",
    "encoder.layers.": "transformer.resblocks.",
    "layer_norm": "ln_",
    "self_attn.": "attn.",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def clip(checkpoint):
    state = checkpoint.text_encoder.state_dict()
    positions = {"embeddings.position_ids": torch.arange(77)[None]}
    return {f"cond_stage_model.transformer.text_model.{name}": value for name, value in (state | positions).items()}


def open_clip(text_encoder):
    """Name the text encoder's tensors as OpenCLIP does: queries, keys and values are one tensor."""
    prefix, state, tensors = "cond_stage_model.model.", text_encoder.state_dict(), {}
    for name in list(state):
        match = re.fullmatch(r"(.*)\.q_proj\.(weight|bias)", name)
        if match:
            three = [state.pop(f"{match[1]}.{letter}_proj.{match[2]}") for letter in "qkv"]
            state[f"{match[1]}.in_proj_{match[2]}"] = torch.cat(three)
    for name, value in state.items():
        new = name
        for ours, original in OPEN_CLIP.items():
            new = new.replace(ours, original)
        tensors[prefix + new] = value
    return tensors | {prefix + "logit_scale": torch.ones(()), prefix + "text_projection": torch.eye(48)}


def write(checkpoint, path):
    tensors = {f"model.diffusion_model.{unet_name(k)}": v for k, v in checkpoint.unet.state_dict().items()}
    for name, value in checkpoint.vae.state_dict().items():
        new = vae_name(name)
        is_matrix = "attn_1" in new and value.dim() == 2  # 1x1 convolutions in the original
        tensors[f"first_stage_model.{new}"] = value[:, :, None, None] if is_matrix else value
    tensors |= open_clip(checkpoint.text_encoder) if checkpoint.prediction_type == "v_prediction" else clip(checkpoint)
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)


@pytest.fixture(scope="module", params=["tiny", "tiny-sd2"])
def checkpoint(request):
    return random_checkpoint(request.param, 4)


@pytest.fixture
def file(checkpoint, tmp_path):
    """A single file beside the configs and tokenizer of its model, as in the repositories of a hub."""
    save(checkpoint, tmp_path / "model")
    for weights in (tmp_path / "model").rglob("*.safetensors"):
        weights.unlink()
    path = tmp_path / "model" / "v1-tiny.safetensors"
    write(checkpoint, path)
    return path


def assert_same_weights(one, other):
    for part in MODULES:
        expected, found = getattr(other, part).state_dict(), getattr(one, part).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_weights_come_out_as_they_went_in(file, checkpoint):
    loaded = load_checkpoint(str(file))
    assert_same_weights(loaded, checkpoint)
    assert loaded.name == "v1-tiny"
    assert loaded.tokenizer_json == checkpoint.tokenizer_json
    assert loaded.scheduler_config.items() >= checkpoint.scheduler_config.items()


def test_without_configs_they_are_those_of_the_architecture(file, checkpoint, monkeypatch):
    monkeypatch.setattr(single_file, "ARCHITECTURE_OF_CONTEXT", {32: "tiny", 48: "tiny-sd2"})
    for path in file.parent.iterdir():
        if path.is_dir() and path.name != "tokenizer":
            shutil.rmtree(path)
    (file.parent / "model_index.json").unlink()
    loaded = load_checkpoint(str(file))
    assert_same_weights(loaded, checkpoint)
    assert loaded.tokenizer_json == checkpoint.tokenizer_json
    assert (loaded.prediction_type, loaded.height) == (checkpoint.prediction_type, 64)


def test_without_a_tokenizer_the_message_says_where_to_put_one(file, monkeypatch):
    monkeypatch.setattr(single_file, "ARCHITECTURE_OF_CONTEXT", {32: "sd15", 48: "sd21"})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    alone = file.rename(file.parent.parent / file.name)
    with pytest.raises(UserError, match=r"brings no tokenizer.*vocab.json and merges.txt into .*/tokenizer"):
        load_checkpoint(str(alone))


def test_digest_is_of_weights_and_configs(file):
    digest = load_checkpoint(str(file)).digest
    assert load_checkpoint(str(file)).digest == digest
    config = file.parent / "scheduler/scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prediction_type": "sample"}))
    assert load_checkpoint(str(file)).digest != digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: {"x": torch.zeros(1)}, "holds no SD 1.x or 2.x in the original layout"),
        (
            lambda tensors: {k: v for k, v in tensors.items() if "encoder.conv_in" not in k},
            r"lacks the tensor encoder.conv_in.weight, encoder.conv_in.bias",
        ),
        (
            lambda tensors: {k: v for k, v in tensors.items() if "layers.1.mlp" not in k and "blocks.1.mlp" not in k},
            r"lacks the tensor encoder.layers.1.mlp.fc1.weight, .* and 1 more",
        ),
        (
            lambda tensors: {k: v[:5].contiguous() if "decoder.conv_in" in k else v for k, v in tensors.items()},
            r"decoder.conv_in.weight has the shape \[5, 4, 3, 3\] instead of \[16, 4, 3, 3\]",
        ),
    ],
    ids=["another model", "no vae conv_in", "no text layer", "misshapen vae"],
)
def test_wrong_content(file, change, message):
    save_file(change(load_file(file)), file)
    with pytest.raises(UserError, match=message) as caught:
        load_checkpoint(str(file))
    assert "\n" not in str(caught.value)


def test_another_context_width_is_no_stable_diffusion_1_or_2(file):
    (file.parent / "model_index.json").unlink()
    with pytest.raises(UserError, match=r"is not a text-to-image model of SD 1\.x or 2\.x"):
        load_checkpoint(str(file))


def test_truncated(file):
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=rf"{file.name} is truncated"):
        load_checkpoint(str(file))


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.safetensors: no such file"):
        load_checkpoint(str(tmp_path / "nothing.safetensors"))
