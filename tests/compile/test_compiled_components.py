"""Every component of both architectures equals PyTorch, at odd sizes and in batches."""

import pytest
from small_component import after, parity
from written_module import operators

from models.checkpoint import load_checkpoint
from models.components import components, vae_encoder
from runtime.quality import FLOOR


@pytest.fixture(scope="module")
def checkpoints():
    return {name: load_checkpoint(f"random:{name}") for name in ("tiny", "tiny-sd2")}


def part(checkpoint, name, height, width, batch=1):
    """Return one component of a checkpoint by name."""
    if name == "vae_encoder":
        return vae_encoder(checkpoint, height, width)
    return next(c for c in components(checkpoint, height, width, batch) if c.name == name)


@pytest.mark.parametrize(
    ("architecture", "name", "height", "width", "batch"),
    [
        ("tiny", "text_encoder", 64, 64, 1),
        ("tiny-sd2", "text_encoder", 64, 64, 1),
        ("tiny", "unet", 72, 104, 3),
        ("tiny", "vae_decoder", 72, 104, 3),
        ("tiny", "vae_encoder", 72, 104, 1),
    ],
)
def test_parity(checkpoints, tmp_path, architecture, name, height, width, batch):
    """64x64 and SD 2's UNet and decoder are built, and checked by the same gate, in the tests of the scripts."""
    component = part(checkpoints[architecture], name, height, width, batch)
    measured = parity(component, tmp_path).psnr
    assert list(measured) == [function.name for function in component.functions]
    assert min(measured.values()) >= FLOOR["float32"] == 60


def test_guided_is_twice_the_batch(checkpoints):
    unet = part(checkpoints["tiny"], "unet", 72, 104, 3)
    latents = {function.name: tuple(function.inputs[0][1].shape) for function in unet.functions}
    assert latents == {"guided": (6, 4, 9, 13), "unguided": (3, 4, 9, 13)}


@pytest.mark.parametrize(("name", "most"), [("unet", 2), ("vae_decoder", 1), ("text_encoder", 0)])
def test_transposes_that_are_left(checkpoints, name, most):
    """Pictures are transposed where a component begins and ends, and nowhere inside; text never."""
    component = part(checkpoints["tiny"], name, 64, 64)
    module = after(component, "dispatch")
    for function in component.functions:
        names = operators(module, function.name)
        assert names.count("permute_dims") <= most, f"{function.name}: {names.count('permute_dims')} transposes"
