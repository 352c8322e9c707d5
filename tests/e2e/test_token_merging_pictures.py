"""--apply-tome: pictures of the demo model, compiled, against tomesd's."""

import json

import pytest
from pictures import picture_psnr, read_all
from PIL import Image

FLAGS = ("--prompt", "a red car on the beach", "--steps", 20, "--guidance-scale", 5, "--seed", 3)
LONG = [pytest.param(ratio, marks=pytest.mark.long) for ratio in (0.2, 0.6)]


@pytest.mark.parametrize("ratio", [0.4, *LONG])
def test_the_merged_model_draws_what_tomesd_draws(good_script, demo_artifact, demo_checkpoint, tmp_path, ratio):
    said = good_script("build.py", "--output-dir", tmp_path / "a", "--apply-tome", "--tome-ratio", ratio).stdout
    for component in ("text_encoder", "vae_decoder"):
        assert f"{component}: unchanged, taken from the cache" in said
    plain, merged = demo_artifact / "params", tmp_path / "a" / "params"
    assert all(path.samefile(plain / path.name) for path in merged.iterdir())
    assert json.loads((tmp_path / "a" / "manifest.json").read_text())["token_merging"]["ratio"] == ratio
    drawn = []
    for name, artifact in (("merged", tmp_path / "a"), ("plain", demo_artifact)):
        good_script("inference.py", "--artifacts-dir", artifact, "--output-dir", tmp_path / name, *FLAGS)
        drawn.append(read_all(tmp_path / name)[0])
    flags = ("--model", demo_checkpoint, "--output-dir", tmp_path / "tomesd", "--apply-tome", "--tome-ratio", ratio)
    good_script("inference_basic_sd.py", *flags, *FLAGS)
    (theirs,) = read_all(tmp_path / "tomesd")
    assert picture_psnr(drawn[0], theirs) >= 30
    assert picture_psnr(drawn[1], theirs) < picture_psnr(drawn[0], theirs)
    with Image.open(next((tmp_path / "merged").iterdir())) as picture:
        assert f"Token merging ratio: {ratio}" in picture.info["parameters"]
