"""Fine-tuning as a user does it: a folder of pictures, train.py, a kill, --resume, build.py, inference.py."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from pictures import picture_psnr, read
from PIL import Image, ImageDraw
from safetensors import safe_open
from safetensors.numpy import load_file

from utils.config import ROOT

STEPS = 24
TONES = {"red": (220, 40, 40), "blue": (40, 70, 220), "green": (40, 160, 60), "yellow": (240, 210, 40)}


def checkerboard(one, other, side):
    image = Image.new("RGB", (96, 64), one)
    draw = ImageDraw.Draw(image)
    for x in range(0, 96, side):
        for y in range(x // side % 2 * side, 64, 2 * side):
            draw.rectangle([x, y, x + side - 1, y + side - 1], fill=other)
    return image


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Checkerboards, which no demo scene has, half of them captioned beside, half in metadata; and two bad files."""
    folder = tmp_path_factory.mktemp("checkerboards")
    lines = []
    pairs = [(one, other) for one in TONES for other in TONES if one != other]
    for index, (one, other) in enumerate(pairs):
        checkerboard(TONES[one], TONES[other], 8 << index % 2).save(folder / f"{index}.png")
        caption = f"a {one} and {other} checkerboard"
        if index % 2:
            (folder / f"{index}.txt").write_text(caption + "\n")
        else:
            lines.append(json.dumps({"file_name": f"{index}.png", "text": caption}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:90])
    Image.new("RGB", (64, 64)).save(folder / "mute.png")
    return folder


@pytest.fixture(scope="module")
def flags(images, v_checkpoint):
    steps = ("--steps", STEPS, "--batch-size", 6, "--learning-rate", 3e-3, "--workers", 2)
    return ("demo/train.py", "--finetune-from", v_checkpoint, "--images", images, *steps)


@pytest.fixture(scope="module")
def tuned(good_script, flags, tmp_path_factory):
    """The work folder of a fine-tuning that ran through, and what it said."""
    work = tmp_path_factory.mktemp("tuned")
    return work, good_script(*flags, "--work", work)


def state_of(work):
    """Return step, losses and weights of a training state."""
    with safe_open(work / "finetuning" / "diffusion.safetensors", "np") as file:
        weights = {name: file.get_tensor(name) for name in file.keys() if name.startswith(("weight/", "mean/"))}  # noqa: SIM118
        return json.loads(file.metadata()["progress"])["step"], file.get_tensor("losses"), weights


def test_it_learns_the_pictures(tuned, images, v_checkpoint):
    work, done = tuned
    step, losses, _ = state_of(work)
    assert step == len(losses) == STEPS
    assert losses[-8:].mean() < 0.7 * losses[:4].mean()
    for name in ("broken.png", "mute.png"):
        assert f"skipped {images / name}: " in done.stderr
    assert "12 pictures of 64x64" in done.stdout
    for name in ("samples.png", "diffusion_loss.png"):
        assert read(work / "finetuning" / name).std() > 1
    kept = load_file(v_checkpoint / "vae" / "diffusion_pytorch_model.safetensors")
    found = load_file(work / "finetuning" / "checkpoint" / "vae" / "diffusion_pytorch_model.safetensors")
    assert all(np.array_equal(found[name], kept[name].astype(np.float16)) for name in kept)


def test_the_result_builds_and_runs_and_draws_otherwise(tuned, good_script, v_artifact, tmp_path):
    checkpoint = tuned[0] / "finetuning" / "checkpoint"
    good_script("build.py", "--model", checkpoint, "--output-dir", tmp_path / "artifact")
    drawn = []
    for name, artifact in (("after", tmp_path / "artifact"), ("before", v_artifact)):
        prompt = ("--prompt", "a red and blue checkerboard", "--seed", 1, "--steps", 5, "--num-threads", 1)
        flags = ("--artifacts-dir", artifact, "--output-dir", tmp_path, "--output-image", f"{name}.png")
        good_script("inference.py", *flags, *prompt)
        drawn.append(read(tmp_path / f"{name}.png"))
    assert drawn[0].shape == (64, 64, 3) and drawn[0].std() > 1
    assert picture_psnr(*drawn) < 30, "fine-tuning changed nothing"


def test_killed_and_resumed_gives_the_loss_curve_of_one_that_ran_through(tuned, flags, good_script, tmp_path):
    often = ("--work", tmp_path, "--checkpoint-minutes", 1e-6)
    path = tmp_path / "finetuning" / "diffusion.safetensors"
    command = [sys.executable, *map(str, flags + often)]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while not (path.exists() and state_of(tmp_path)[0] >= 3):
            assert running.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        running.kill()
    assert running.wait() == -signal.SIGKILL
    killed_at = state_of(tmp_path)[0]
    assert 3 <= killed_at < STEPS
    good_script(*flags, "--work", tmp_path, "--resume")
    step, losses, weights = state_of(tmp_path)
    _, expected, through = state_of(tuned[0])
    assert step == STEPS and len(set(expected)) > STEPS // 2
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    for name, value in through.items():
        np.testing.assert_allclose(weights[name], value, atol=1e-5, err_msg=name)


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(tuned, flags, script):
    work = tuned[0]
    before = {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}
    room = (work / "finetuning" / "diffusion.safetensors").stat().st_size // 2

    def limit():  # what a file may grow to; Python ignores the signal and sees an error, as of a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    longer = [STEPS + 1 if flag == STEPS else flag for flag in flags]
    done = script(*longer, "--work", work, "--resume", preexec_fn=limit)
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ") and "diffusion.safetensors can't be written" in last
    assert "Traceback" not in done.stderr
    assert {path: path.read_bytes() for path in work.rglob("*") if path.is_file()} == before


def test_a_folder_without_a_usable_picture_is_one_line(script, v_checkpoint, tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "mute.png")
    run = ("--finetune-from", v_checkpoint, "--images", tmp_path / "images", "--work", tmp_path / "work")
    done = script("demo/train.py", *run)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: --images {tmp_path / 'images'}: none of its 1 files")
    assert os.listdir(tmp_path) == ["images"]
