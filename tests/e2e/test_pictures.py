"""The acceptance test: the compiled model's pictures are diffusers' pictures, flag for flag."""

import numpy as np
import pytest
from pictures import picture_psnr, read, read_all

from backends.baseline import run as run_baseline
from utils.command_line import parse
from utils.config import BaselineConfig

FLOOR = 40  # dB
SCHEDULERS = ("ddim", "pndm", "euler", "euler-ancestral", "dpmpp-2m")
ONE_THREAD = ("--num-threads", 1)  # as fast for a tiny model, and it does not wait for a core that others use
LEAST_CONTRAST = 8  # standard deviation of 0 to 255: a picture that is not one colour


@pytest.fixture
def both(good_script, tmp_path):
    """Run both sides with the same flags and return the pictures in pairs.

    The baseline runs in this process as its script runs it: its imports take longer than its pictures.
    """

    def run(artifact, model, *flags, size=()):
        ours, theirs = tmp_path / "ours", tmp_path / "theirs"
        good_script("inference.py", "--artifacts-dir", artifact, "--output-dir", ours, *flags)
        baseline = [str(part) for part in ("--model", model, *size, "--output-dir", theirs, *flags)]
        run_baseline(parse(BaselineConfig, baseline, "", ""))
        pairs = list(zip(read_all(ours), read_all(theirs), strict=True))
        for mine, other in pairs:
            assert mine.std() > LEAST_CONTRAST, "a picture of one colour proves nothing"
            assert picture_psnr(mine, other) >= FLOOR
        return pairs

    return run


def assert_seeds_differ(pairs):
    (first, _), (second, _) = pairs
    assert picture_psnr(first, second) < 30, "two seeds must be two pictures"


@pytest.mark.parametrize("label", SCHEDULERS)
def test_the_demo_model(both, demo_artifact, demo_checkpoint, label):
    flags = ("--scheduler-label", label, "--steps", 20, "--seed", 7, "--num-images", 2)
    assert_seeds_differ(both(demo_artifact, demo_checkpoint, *flags))


@pytest.mark.parametrize("label", SCHEDULERS)
def test_v_prediction(both, v_artifact, v_checkpoint, label):
    flags = (
        "--scheduler-label",
        label,
        "--steps",
        20,
        "--seed",
        1,
        "--num-images",
        2,
        "--prompt",
        "a red circle",
        *ONE_THREAD,
    )
    assert_seeds_differ(both(v_artifact, v_checkpoint, *flags))


@pytest.mark.parametrize("label", SCHEDULERS)
def test_v_prediction_at_an_odd_size(both, v_odd_artifact, v_checkpoint, label):
    flags = (
        "--scheduler-label",
        label,
        "--steps",
        20,
        "--seed",
        2**64 - 1,
        "--num-images",
        2,
        "--prompt",
        "x",
        *ONE_THREAD,
    )
    pairs = both(v_odd_artifact, v_checkpoint, *flags, size=("--height", 72, "--width", 104))
    assert pairs[0][0].shape == (72, 104, 3)
    assert_seeds_differ(pairs)


PROMPTS = {
    "unguided": ("--prompt", "a green square", "--guidance-scale", 1),
    "guidance 0": ("--prompt", "a green square", "--guidance-scale", 0),
    "much guidance": ("--prompt", "a green square", "--guidance-scale", 12.5),
    "negative prompt": ("--prompt", "a green square", "--negative-prompt", "blue, red"),
    "empty prompt": ("--prompt", ""),
    "10,000 words": ("--prompt", "circle " * 10_000),
    "emoji": (
        "--prompt",
        "\N{SNOWMAN} \N{ARTIST PALETTE}\N{ZERO WIDTH JOINER}\N{GRINNING FACE} caf\u00e9 \u4e2d\u6587",
    ),
    "punctuation": ("--prompt", "a (green:1.2) 'square', 100% \"quoted\" <b>\ttab"),
}


@pytest.mark.parametrize("case", PROMPTS)
def test_prompts(both, v_artifact, v_checkpoint, case):
    both(v_artifact, v_checkpoint, *PROMPTS[case], "--steps", 5, "--seed", 3, *ONE_THREAD)


def test_what_is_asked_shows(good_script, tiny_artifact, tmp_path):
    """Prompt, negative prompt, guidance, sampler, steps and seed each change the picture; their repetition does not."""
    base = {"--prompt": "a green square", "--seed": 3, "--steps": 4, "--scheduler-label": "ddim"}
    changes = [
        {},
        {},
        {"--prompt": "a red circle"},
        {"--negative-prompt": "blue"},
        {"--guidance-scale": 1},
        {"--scheduler-label": "euler"},
        {"--steps": 5},
        {"--seed": 4},
    ]
    pictures = []
    for index, change in enumerate(changes):
        flags = [part for pair in {**base, **change}.items() for part in pair]
        name = f"{index}.png"
        good_script(
            "inference.py", "--artifacts-dir", tiny_artifact, "--output-dir", tmp_path, "--output-image", name, *flags
        )
        pictures.append(read(tmp_path / name))
    assert np.array_equal(pictures[0], pictures[1])
    for index, other in enumerate(pictures[2:], 2):
        assert not np.array_equal(pictures[0], other), f"{changes[index]} changed nothing"


def test_a_picture_of_a_run_of_many_is_that_of_its_stored_seed(good_script, tiny_artifact, tmp_path):
    flags = ("--artifacts-dir", tiny_artifact, "--steps", 3, "--prompt", "x", "--scheduler-label", "euler-ancestral")
    good_script("inference.py", *flags, "--seed", 10, "--num-images", 3, "--output-dir", tmp_path / "many")
    good_script("inference.py", *flags, "--seed", 12, "--output-dir", tmp_path / "one")
    assert np.array_equal(read_all(tmp_path / "many")[2], read_all(tmp_path / "one")[0])
