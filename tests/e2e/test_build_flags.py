"""Flags of build.py that change the code: the artifact tells, and the pictures stay."""

import json

import pytest
from pictures import picture_psnr, read_all

from compiler.target import resolve_target
from utils.errors import UserError

RUN = ("--steps", 10, "--seed", 5, "--num-images", 2, "--scheduler-label", "ddim")
KINDS = {"float32": 40, "bfloat16": 25}  # dB between the pictures and those of the usual artifact, at least
HALVED = {"amx": 0.7, "dot": 0.95}  # of the usual size, by unit: without AMX 3x3 convolutions stay in float32


def bfloat16_unit() -> str | None:
    try:
        return resolve_target("llvm", "bfloat16").machine.unit
    except UserError:
        return None


@pytest.fixture(scope="module")
def pictures(good_script, tmp_path_factory):
    def draw(artifact):
        folder = tmp_path_factory.mktemp("pictures")
        good_script("inference.py", "--artifacts-dir", artifact, "--output-dir", folder, *RUN)
        return read_all(folder)

    return draw


def manifest(artifact):
    return json.loads((artifact / "manifest.json").read_text())


@pytest.mark.parametrize(
    ("flags", "dtype", "kernel"),
    [
        pytest.param(
            ("--dtype", "bfloat16"),
            "bfloat16",
            "tile_conv2d",
            marks=pytest.mark.skipif(bfloat16_unit() is None, reason="this CPU has neither AMX nor avx512_bf16"),
        ),
        (("--winograd-tile", 4, "--disable", "split_float32"), "float32", "winograd_4"),
        pytest.param(("--disable", "all"), "float32", "rule", marks=pytest.mark.long),
    ],
)
def test_the_artifact_tells_and_the_pictures_stay(good_script, tmp_path, demo_artifact, pictures, flags, dtype, kernel):
    built = tmp_path / "artifact"
    good_script("build.py", "--output-dir", built, *flags)
    usual, other = manifest(demo_artifact), manifest(built)
    assert other["dtype"] == dtype
    assert other["components"]["unet"]["time_share"][kernel] > 0
    size, usual_size = (m["components"]["unet"]["parameters"]["size"] for m in (other, usual))
    assert size < usual_size * (HALVED[bfloat16_unit()] if dtype == "bfloat16" else 1.3)
    pairs = list(zip(pictures(built), pictures(demo_artifact), strict=True))
    for mine, theirs in pairs:
        assert picture_psnr(mine, theirs) >= KINDS[dtype]
    if dtype == "bfloat16":
        assert any((mine != theirs).any() for mine, theirs in pairs)
