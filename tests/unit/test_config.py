import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_artifact import write_artifact

from utils.command_line import flag, flag_name, parse
from utils.config import DEMO_CHECKPOINT, BaselineConfig, BuildConfig, RunConfig, TokenMerging
from utils.errors import UserError, choose, nearest, run_script

ROOT = Path(__file__).resolve().parents[2]


def parse_run(*argv):
    return parse(RunConfig, argv, "description", "examples")


def test_defaults():
    config = parse_run()
    assert config == RunConfig()
    assert (config.steps, config.guidance_scale, config.num_images, config.device) == (20, 7.5, 1, "auto")
    assert (config.prompt, config.seed, config.scheduler_label, config.negative_prompt) == (None, None, None, "")
    assert (config.artifacts_dir, config.output_dir) == (Path("artifacts"), Path("outputs"))
    assert Path(BuildConfig().model) == DEMO_CHECKPOINT


def test_every_flag_reaches_its_field(tmp_path):
    config = parse_run(
        "--prompt", "", "--negative-prompt", "b", "--scheduler-label", "ddim", "--steps", "1", "--guidance-scale", "0",
        "--seed", "0", "--num-images", "2", "--num-threads", "3", "--output-dir", str(tmp_path / "new" / "folder"),
        "--output-image", "x.PNG", "--device", "cpu", "--artifacts-dir", "a", "--verify", "--enable-profiling",
        "--enable-debug",
    )  # fmt: skip
    assert dataclasses.asdict(config) == {
        "prompt": "",
        "negative_prompt": "b",
        "scheduler_label": "ddim",
        "steps": 1,
        "guidance_scale": 0.0,
        "seed": 0,
        "num_images": 2,
        "num_threads": 3,
        "output_dir": tmp_path / "new" / "folder",
        "output_image": "x.PNG",
        "device": "cpu",
        "artifacts_dir": Path("a"),
        "verify": True,
        "enable_profiling": True,
        "enable_debug": True,
    }
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("argv", [["--seed", str(2**64 - 1)], ["--steps", "1000"], ["--prompt=--strange"]], ids=str)
def test_the_ends_of_the_ranges_are_inside(argv):
    parse_run(*argv)


BAD_SAMPLING = [
    (["--steps", "0"], "--steps must be from 1 to 1000, not 0"),
    (["--steps", "-1"], "--steps must be from 1 to 1000, not -1"),
    (["--steps", "1001"], "--steps must be from 1 to 1000, not 1001"),
    (["--steps", "abc"], "--steps: invalid int value: 'abc'"),
    (["--steps", "2.5"], "--steps: invalid int value"),
    (["--steps"], "--steps: expected one argument"),
    (["--guidance-scale", "nan"], "--guidance-scale must be from 0 to 1000, not nan"),
    (["--guidance-scale", "inf"], "--guidance-scale must be from 0"),
    (["--guidance-scale", "-1"], "--guidance-scale must be from 0"),
    (["--seed", "-1"], "--seed must be from 0 to 2^64-1, not -1"),
    (["--seed", str(2**64)], "--seed must be from 0 to 2^64-1, not 18446744073709551616"),
    (["--num-images", "0"], "--num-images must be from 1"),
    (["--num-threads", "0"], "--num-threads must be from 1"),
    (["--device", "xla"], "--device 'xla' is unknown; choose from: auto, cpu, cuda"),
    (["--device", "cudaa"], "did you mean cuda?"),
    (["--output-image", "x.jpg"], "--output-image x.jpg: the name must end in .png"),
    (["--output-image", "sub/x.png"], "without folders"),
    (["--output-image", "/x.png"], "without folders"),
    (["--output-image", ""], "must end in .png"),
    (["--stepz", "3"], "unknown argument '--stepz' (did you mean --steps?)"),
    (["--step", "3"], "unknown argument '--step' (did you mean --steps?)"),
    (["--guidence-scale=3"], "unknown argument '--guidence-scale' (did you mean --guidance-scale?)"),
    (["a cat"], "unknown argument 'a cat'"),
]


@pytest.mark.parametrize("kind", [RunConfig, BaselineConfig])
@pytest.mark.parametrize(("argv", "message"), BAD_SAMPLING, ids=lambda value: str(value)[:40])
def test_bad_sampling_flags(kind, argv, message):
    with pytest.raises(UserError) as caught:
        parse(kind, argv, "", "")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "argv", "message"),
    [
        (BuildConfig, ["--height", "0"], "--height must be a multiple of 8"),
        (BuildConfig, ["--height", "-8"], "--height must be a multiple of 8"),
        (BuildConfig, ["--width", "100"], "--width must be a multiple of 8 from 8 to 8192 pixels, not 100"),
        (BuildConfig, ["--width", "8200"], "--width"),
        (BuildConfig, ["--batch-size", "0"], "--batch-size"),
        (BuildConfig, ["--dtype", "float16"], "--dtype float16 is not to be had on a CPU; use float32 or bfloat16"),
        (BuildConfig, ["--winograd-tile", "3"], "--winograd-tile '3' is unknown"),
        (BuildConfig, ["--num-threads", "0"], "--num-threads"),
        (BuildConfig, ["--tome-ratio", "0.3"], "--tome-ratio does nothing without --apply-tome"),
        (BuildConfig, ["--tome-sx", "3"], "--tome-sx does nothing without --apply-tome"),
        (BaselineConfig, ["--tome-ratio", "0.3"], "--tome-ratio does nothing without --apply-tome"),
        (BuildConfig, ["--apply-tome", "--tome-ratio", "nan"], "--tome-ratio must be from 0 to 0.75, not nan"),
        (BuildConfig, ["--apply-tome", "--tome-ratio", "-0.1"], "--tome-ratio must be from 0 to 0.75"),
        (BuildConfig, ["--apply-tome", "--tome-ratio", "0.76"], "--tome-ratio must be from 0 to 0.75"),
        (BuildConfig, ["--apply-tome", "--tome-merge", "attn,norm"], "--tome-merge 'norm' is unknown"),
        (BuildConfig, ["--apply-tome", "--tome-merge", ""], "--tome-merge '' is unknown"),
        (BuildConfig, ["--apply-tome", "--tome-max-downsample", "3"], "--tome-max-downsample '3' is unknown"),
        (BuildConfig, ["--apply-tome", "--tome-sx", "0"], "--tome-sx must be from 1 to 64"),
        (BuildConfig, ["--apply-tome", "--tome-sx", "1", "--tome-sy", "1"], "leave no token to merge"),
        (BaselineConfig, ["--width", "12"], "--width must be a multiple of 8"),
        (BaselineConfig, ["--dtype", "float31"], "did you mean float32?"),
        (BaselineConfig, ["--attention", "sdpaa"], "choose from: math, sdpa, xformers"),
        (BaselineConfig, ["--tome-ratio", "0.76"], "--tome-ratio must be from 0 to 0.75"),
        (BaselineConfig, ["--tome-ratio", "nan"], "--tome-ratio"),
    ],
)
def test_bad_flags_of_the_other_scripts(kind, argv, message):
    with pytest.raises(UserError) as caught:
        parse(kind, argv, "", "")
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", [RunConfig, BaselineConfig, BuildConfig])
@pytest.mark.parametrize("below", ["", "sub/folder"])
def test_a_file_in_the_place_of_the_output_folder(tmp_path, kind, below):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match=r"--output-dir .*file is a file, not a folder"):
        kind(output_dir=tmp_path / "file" / below)
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_without_permission_to_write(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(UserError, match=r"--output-dir .*: no permission to write"):
        RunConfig(output_dir=tmp_path / "new")


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().steps = 3


# --- the command line ---


@dataclasses.dataclass(frozen=True, kw_only=True)
class Small:
    share: float | None = flag(None, "100% of it", metavar="PART")
    two_words: bool = flag(False, "yes or no")
    text: str = flag("x", "a word")


def test_parse_makes_flags_from_fields():
    assert flag_name("two_words") == "--two-words"
    assert parse(Small, [], "", "") == Small(share=None, two_words=False, text="x")
    assert parse(Small, ["--share", "0", "--two-words", "--text", ""], "", "") == Small(
        share=0.0, two_words=True, text=""
    )


def test_help_shows_flags_defaults_and_examples(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(Small, ["--help"], "What it does.", "\n  an example\n")
    out = capsys.readouterr().out
    assert caught.value.code == 0
    assert "What it does." in out and "--share PART" in out and "100% of it" in out and "a word (default: x)" in out
    assert out.endswith("examples:\n  an example\n")


def test_nearest_and_choose():
    assert nearest("Eulr", ["ddim", "Euler"]) == " (did you mean Euler?)"
    assert nearest("zzz", ["ddim", "Euler"]) == ""
    assert choose("--x", "a", iter(["a", "b"])) == "a"
    with pytest.raises(UserError, match=r"--x 'aa' is unknown \(did you mean ab\?\); choose from: ab, cd"):
        choose("--x", "aa", iter(["ab", "cd"]))


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("two\nlines,  one"), 2, "error: two lines, one\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted: nothing half-written is left behind\n"),
    ],
)
def test_run_script_tells_in_one_line(monkeypatch, capsys, error, code, message):
    def main(argv):
        assert argv == ["--flag"]
        raise error

    monkeypatch.setattr(sys, "argv", ["script.py", "--flag"])
    with pytest.raises(SystemExit) as caught:
        run_script(main)
    assert (caught.value.code, capsys.readouterr().err) == (code, message)


def test_run_script_lets_our_own_defects_through_and_returns_after_success(monkeypatch):
    def main(argv):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_script(main)
    run_script(lambda argv: None)
    monkeypatch.setattr(sys, "stdout", None)
    run_script(lambda argv: None)


# --- bad input, as a user meets it ---


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "1001"], "--steps"),
        (["--device", "coda"], "did you mean cuda?"),
        (["--scheduler-label", "eulr"], "did you mean euler?"),
        (["--sead", "1"], "did you mean --seed?"),
        (["--output-dir", "{folder}/file/below"], "--output-dir"),
        (["--artifacts-dir", "{folder}/none"], "--artifacts-dir"),
        (["--device", "cuda"], "--device cuda"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_users_mistake_is_one_line_and_code_2(tmp_path, flags, message):
    (tmp_path / "file").write_text("kept")
    write_artifact(tmp_path / "artifacts")
    before = sorted(tmp_path.rglob("*"))
    given = [text.format(folder=tmp_path) for text in flags]
    defaults = ["--artifacts-dir", str(tmp_path / "artifacts"), "--output-dir", str(tmp_path / "out")]
    result = subprocess.run(
        [sys.executable, "inference.py", *defaults, *given], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    (line,) = result.stderr.splitlines()
    assert (result.returncode, result.stdout) == (2, "")
    assert line.startswith("error: ") and message in line
    assert sorted(tmp_path.rglob("*")) == before


def test_what_token_merging_is_asked_for():
    def asked(*argv):
        return parse(BuildConfig, list(argv), "", "").merging

    assert asked() is None and asked("--apply-tome") == TokenMerging(0.5, ("attn",), 1, (2, 2))
    every = ("--tome-ratio", "0", "--tome-merge", "mlp, attn", "--tome-max-downsample", "4", "--tome-sx", "3")
    assert asked("--apply-tome", *every) == TokenMerging(0.0, ("attn", "mlp"), 4, (2, 3))


@pytest.mark.parametrize("target", ["cuda", "llvn", ""])
def test_a_target_that_can_not_be_had_is_refused_before_what_was_built_is_looked_for(target):
    with pytest.raises(UserError, match="--target"):
        BuildConfig(target=target)
