"""A checkpoint on disk that a test may change, and the ways to change it."""

import json

from safetensors.torch import load_file, save_file

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


def edit_json(path, **changes):
    """Set values of a JSON file; ``...`` takes one out."""
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not ...}))


def edit_tensors(path, change):
    """Replace the tensors of a safetensors file by ``change`` of them."""
    save_file(change(load_file(path)), path)
