"""inference_basic_sd.py as a user runs it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.random_checkpoint import random_checkpoint, save

ROOT = Path(__file__).resolve().parents[2]


def run(*flags, cwd=ROOT, **environment):
    command = [sys.executable, str(ROOT / "inference_basic_sd.py"), *map(str, flags)]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


def pixels(path):
    return np.asarray(Image.open(path)).astype(np.float32)


def expected(arch, seed, prompt, **flags):
    pipe = random_checkpoint(arch).pipeline()
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(seed)
    return pipe(prompt, generator=generator, output_type="np", **flags).images[0] * 255


def test_pictures_are_those_of_the_pipeline_and_say_what_they_are(tmp_path):
    flags = ["--model", "random:tiny-sd2", "--steps", 3, "--seed", 2**64 - 1, "--num-images", 2]
    flags += ["--prompt", "caf\u00e9 \U0001f680", "--height", 72, "--width", 104, "--guidance-scale", 5]
    done = run(*flags, "--output-dir", tmp_path / "new" / "folder", "--output-image", "x.png")
    assert (done.returncode, done.stderr) == (0, "")
    size = {"num_inference_steps": 3, "guidance_scale": 5.0, "height": 72, "width": 104}
    for name, seed in (("x.png", 2**64 - 1), ("x-1.png", 0)):
        picture = pixels(tmp_path / "new" / "folder" / name)
        assert np.abs(picture - expected("tiny-sd2", seed, "caf\u00e9 \U0001f680", **size)).max() < 1
        text = Image.open(tmp_path / "new" / "folder" / name).text["parameters"]
        assert text.startswith("caf\u00e9 \U0001f680\nSteps: 3, Sampler: DDIM, CFG scale: 5.0")
        assert f"Seed: {seed}, Size: 104x72" in text
        assert "random:tiny-sd2" in text
    assert "seed 18446744073709551615 to 0" in done.stdout
    assert re.search(r"load .+, text .+, 6 steps .+ \([\d.]+ steps/s\), decode .+, peak memory \d+ MB", done.stdout)


def test_seed_is_drawn_printed_and_stored_and_the_model_s_own_prompt_is_the_default(tmp_path):
    model = tmp_path / "model"
    save(random_checkpoint("tiny"), model)
    index = model / "model_index.json"
    index.write_text(index.read_text().replace("{", '{"_default_prompt": "a green dog",', 1))
    done = run("--model", model, "--steps", 1, "--output-dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    seed = re.search(r"^seed (\d+)$", done.stdout, re.MULTILINE)[1]
    (picture,) = (tmp_path / "out").iterdir()
    assert picture.name == f"00001-{seed}-a-green-dog.png"
    text = Image.open(picture).text["parameters"]
    assert text.startswith("a green dog\n")
    assert f"Seed: {seed}," in text
    assert np.abs(pixels(picture) - expected("tiny", int(seed), "a green dog", num_inference_steps=1)).max() < 1


def test_long_prompts_are_fine_and_empty_ones_too(tmp_path):
    done = run("--model", "random:tiny", "--steps", 1, "--output-dir", tmp_path, "--prompt", "word " * 10_000)
    assert done.returncode == 0, done.stderr
    assert "truncated" in done.stderr
    assert "Traceback" not in done.stderr
    done = run("--model", "random:tiny", "--steps", 1, "--output-dir", tmp_path, "--prompt", "", "--seed", 0)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "00002-0.png").is_file()


def test_a_hub_id_comes_from_the_cache(tmp_path):
    cache = tmp_path / "home" / "hub" / "models--someone--tiny"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0123abcd")
    save(random_checkpoint("tiny", 6), cache / "snapshots" / "0123abcd")
    flags = ["--steps", 1, "--output-dir", tmp_path / "out"]
    done = run("--model", "someone/tiny", *flags, HF_HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    (picture,) = (tmp_path / "out").iterdir()
    assert "Model: someone/tiny" in Image.open(picture).text["parameters"]
    done = run("--model", "someone/else", *flags, HF_HOME=str(tmp_path / "home"))
    assert done.returncode == 2
    assert re.fullmatch(
        r"error: --model someone/else: no such folder, and as a hub id it can't be had .*\n", done.stderr
    )


def only_pickles(folder):
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"x")


def truncated(folder):
    save(random_checkpoint("tiny"), folder)
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


BAD_MODELS = {
    "missing": (lambda folder: None, "no such folder"),
    "empty": (Path.mkdir, "is empty"),
    "only pickles": (only_pickles, "holds only pickles"),
    "truncated": (truncated, "is truncated"),
}


def assert_refused(done, message, folder):
    assert done.returncode == 2
    assert re.fullmatch(rf"error: .*{message}.*\n", done.stderr)
    assert done.stdout == ""
    assert not folder.exists()


@pytest.mark.parametrize("case", BAD_MODELS)
def test_bad_model_is_one_line_and_exit_code_2(tmp_path, case):
    make, message = BAD_MODELS[case]
    make(tmp_path / "model")
    done = run("--model", tmp_path / "model", "--output-dir", tmp_path / "out")
    assert_refused(done, message, tmp_path / "out")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "random:tinny"], r"unknown architecture \(did you mean tiny\?\); choose from: tiny, tiny-sd2"),
        (
            ["--scheduler-label", "eulr"],
            r"--scheduler-label 'eulr' is unknown \(did you mean euler\?\); choose from: ddim",
        ),
        (["--steps", "0"], "--steps must be from 1 to 1000, not 0"),
        (["--steps", "1001"], "--steps must be from 1 to 1000, not 1001"),
        (["--guidance-scale", "nan"], "--guidance-scale must be .*not nan"),
        (["--seed", "-1"], "--seed must be from 0"),
        (["--seed", str(2**64)], "--seed must be from 0"),
        (["--num-images", "0"], "--num-images must be from 1"),
        (["--height", "60"], "--height must be a multiple of 8"),
        (["--width", "0"], "--width must be a multiple of 8"),
        (["--dtype", "int8"], "--dtype 'int8' is unknown; choose from: float32, float16, bfloat16"),
        (["--attention", "flash"], "--attention 'flash' is unknown; choose from: math, sdpa, xformers"),
        (["--attention", "xformers"], "--attention xformers"),
        (["--tome-ratio", "0.9"], "--tome-ratio must be from 0 to 0.75"),
        (["--promt", "a cat"], r"unknown argument '--promt' \(did you mean --prompt\?\)"),
    ],
    ids=lambda value: value[0] + value[1][:8] if isinstance(value, list) else "",
)
def test_bad_flag_is_one_line_and_exit_code_2(tmp_path, flags, message):
    done = run("--model", "random:tiny", "--output-dir", tmp_path / "out", *flags)
    assert_refused(done, message, tmp_path / "out")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU, which is what the flag asks for")
def test_cuda_without_a_gpu(tmp_path):
    done = run("--model", "random:tiny", "--device", "cuda", "--output-dir", tmp_path / "out")
    assert_refused(done, "--device cuda: PyTorch finds no CUDA GPU here", tmp_path / "out")


def test_output_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    done = run("--model", "random:tiny", "--output-dir", tmp_path / "file")
    assert done.returncode == 2
    assert re.fullmatch(r"error: --output-dir .*is a file, not a folder\n", done.stderr)


@pytest.mark.full_size  # small, but the compiler needs minutes
def test_compiled_pictures_are_the_same(tmp_path):
    flags = ["--model", "random:tiny", "--steps", 1, "--guidance-scale", 1, "--seed", 5, "--prompt", "a cat"]
    done = run(*flags, "--compile", "--output-dir", tmp_path, TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    (picture,) = tmp_path.glob("*.png")
    plain = expected("tiny", 5, "a cat", num_inference_steps=1, guidance_scale=1.0)
    assert np.abs(pixels(picture) - plain).max() < 2
    assert any((tmp_path / "cache").rglob("*.so"))
