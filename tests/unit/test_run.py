import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from fake_artifact import CHANNELS, LATENT, FakeEngine, calls, write_artifact
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from runtime.artifact import Artifact
from runtime.pipeline import Pipeline, Request
from runtime.run import FALLBACK_PROMPT, run
from utils.config import RunConfig
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("fake_engines")
ROOT = Path(__file__).resolve().parents[2]
FAKE_INFERENCE = [sys.executable, str(ROOT / "tests" / "unit" / "fake_artifact.py")]


def config_of(tmp_path, batch=1, **flags):
    artifacts = tmp_path / "artifacts"
    if not artifacts.exists():
        write_artifact(artifacts, batch)
    defaults = {"artifacts_dir": artifacts, "output_dir": tmp_path / "out", "steps": 3, "prompt": "a b"}
    return RunConfig(**{**defaults, **flags})


def outputs(tmp_path):
    folder = tmp_path / "out"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def parameters(path):
    with Image.open(path) as file:
        return file.text["parameters"]


def test_a_run_saves_what_it_prints(tmp_path, capsys):
    run(config_of(tmp_path, 2, num_images=3, seed=2**64 - 1, negative_prompt="c", scheduler_label="Euler a"))
    seed, *paths, summary = capsys.readouterr().out.splitlines()
    assert seed == "seed 18446744073709551615 to 1"
    assert [Path(path).name for path in paths] == outputs(tmp_path)
    for path, each in zip(paths, [2**64 - 1, 0, 1], strict=True):
        assert parameters(path) == (
            f"a b\nNegative prompt: c\nSteps: 3, Sampler: Euler a, CFG scale: 7.5, Seed: {each}, Size: 20x12, "
            'Model hash: 0123456789, Model: "fake, small: model"'
        )
        with Image.open(path) as file:
            assert file.size == (20, 12)
    time = r"\d[\d.]* m?s"
    assert re.fullmatch(
        rf"load {time}, text {time}, 6 steps {time} \([\d.]+ steps/s\), decode {time}, peak memory [\d.]+ [MG]B",
        summary,
    )


def test_the_picture_is_the_pipelines(tmp_path):
    config = config_of(tmp_path, seed=4, output_image="x.png", guidance_scale=2.0)
    run(config)
    pipeline = Pipeline(Artifact(config.artifacts_dir))
    *_, step = pipeline.sample(Request(prompt="a b", steps=3, guidance_scale=2.0), [4])
    with Image.open(tmp_path / "out" / "x.png") as file:
        assert np.array_equal(np.asarray(file), (pipeline.decode(step.x_t)[0] * 255).round().astype(np.uint8))


def test_pictures_are_not_overwritten(tmp_path):
    for _ in range(2):
        run(config_of(tmp_path, output_image="x.png", num_images=2))
    assert outputs(tmp_path) == ["x-1.png", "x-2.png", "x-3.png", "x.png"]


def test_a_drawn_seed_is_printed_stored_and_repeats_the_picture(tmp_path, capsys):
    seeds = []
    for name in ("a.png", "b.png"):
        run(config_of(tmp_path, output_image=name))
        seeds.append(int(capsys.readouterr().out.splitlines()[0].removeprefix("seed ")))
    assert seeds[0] != seeds[1]
    assert f"Seed: {seeds[0]}," in parameters(tmp_path / "out" / "a.png")
    run(config_of(tmp_path, output_image="c.png", seed=seeds[0]))
    contents = [(tmp_path / "out" / name).read_bytes() for name in ("a.png", "b.png", "c.png")]
    assert contents[0] == contents[2] != contents[1]


@pytest.mark.parametrize(
    ("flag", "stored", "expected"),
    [(None, None, FALLBACK_PROMPT), (None, "its own", "its own"), ("", "its own", ""), ("mine", "its own", "mine")],
)
def test_default_prompt(tmp_path, flag, stored, expected):
    write_artifact(tmp_path / "artifacts", default_prompt=stored)
    run(config_of(tmp_path, prompt=flag, output_image="x.png"))
    assert parameters(tmp_path / "out" / "x.png").startswith(f"{expected}\nSteps: " if expected else "Steps: ")


def test_seed_zero_is_a_seed(tmp_path, capsys):
    run(config_of(tmp_path, seed=0))
    assert capsys.readouterr().out.startswith("seed 0\n")


@pytest.mark.parametrize(("label", "name"), [("DPM++ 2M Karras", "DPM++ 2M Karras"), (None, "Euler"), ("pndm", "PLMS")])
def test_the_samplers_name_is_the_web_uis(tmp_path, label, name):
    run(config_of(tmp_path, scheduler_label=label, output_image="x.png"))
    assert f"Sampler: {name}," in parameters(tmp_path / "out" / "x.png")


def test_debug_prints_each_step_as_json(tmp_path, capsys):
    run(config_of(tmp_path, 2, num_images=3, seed=8, enable_debug=True))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [(line["step"], line["of"], line["seeds"]) for line in lines] == [
        *((i, 3, [8, 9]) for i in (1, 2, 3)),
        *((i, 3, [10]) for i in (1, 2, 3)),
    ]
    timesteps = [inputs[1][0] for inputs in calls("unet.")]
    assert [line["timestep"] for line in lines] == timesteps
    assert all(line["latent_min"] < line["latent_max"] and line["nan"] == 0 and line["seconds"] > 0 for line in lines)
    assert lines[0]["sigma"] > lines[1]["sigma"] > lines[2]["sigma"] > 0


def test_the_summary_and_the_bar_count_what_the_sampler_does(tmp_path, capsys, monkeypatch):
    totals = []
    monkeypatch.setattr("runtime.run.progress", lambda steps, name, total: totals.append(total) or steps)
    run(config_of(tmp_path, 2, num_images=3, scheduler_label="pndm"))
    assert totals == [len(calls("unet."))] == [2 * 4]  # pndm's warm-up is a step more
    assert ", 8 steps " in capsys.readouterr().out


def test_without_debug_no_json(tmp_path, capsys):
    run(config_of(tmp_path))
    assert "{" not in capsys.readouterr().out


def test_debug_shows_the_nan_that_stops_the_run(tmp_path, capsys):
    FakeEngine.break_at = ("unet", 1)
    with pytest.raises(UserError, match=r"unet: .* at step 2 of 3"):
        run(config_of(tmp_path, enable_debug=True))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [line["nan"] for line in lines] == [0, CHANNELS * LATENT[0]]
    assert outputs(tmp_path) == []


def test_nan_in_the_last_step_saves_no_picture(tmp_path):
    FakeEngine.break_at = ("unet", 2)
    with pytest.raises(UserError, match=r"unet: .* at step 3 of 3"):
        run(config_of(tmp_path))
    assert outputs(tmp_path) == []


def test_profiling_wraps_the_run_and_prints_its_report(tmp_path, capsys, monkeypatch):
    finished = []
    monkeypatch.setattr("runtime.profile_tables.finish", lambda *arguments: finished.append(arguments) or "the report")
    run(config_of(tmp_path))
    assert (finished, "the report" in capsys.readouterr().out) == ([], False)
    run(config_of(tmp_path, enable_profiling=True, num_images=2, seed=3, num_threads=1, output_image="x.png"))
    assert capsys.readouterr().out.endswith("\nthe report\n")
    ((recording, subject, picture),) = finished
    steps = ["step 1", "step 2", "step 3"]
    assert [phase.name for phase in recording.phases] == 2 * ["text", *steps, "decode"]
    ends = [moment for phase in recording.phases for moment in (phase.start, phase.end)]
    assert ends == sorted(ends) and picture == tmp_path / "out" / "x.png"
    assert (subject.num_threads, subject.width, subject.height, subject.side) == (1, 20, 12, "TVMerge")


def test_threads_and_device_reach_the_engine_first(tmp_path, fake_engines):
    order = []
    fake_engines.resolve_device = lambda flag, manifest: order.append(("device", flag))
    fake_engines.set_num_threads = lambda count: order.append(("threads", count))

    class Engine(FakeEngine):
        def __init__(self, *arguments):
            order.append("engine")
            super().__init__(*arguments)

    fake_engines.Engine = Engine
    run(config_of(tmp_path, device="cpu", num_threads=3))
    assert order == [("device", "cpu"), ("threads", 3), "engine", "engine", "engine"]


def test_an_unknown_sampler_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(UserError, match=r"--scheduler-label 'eulr'.*did you mean euler\?.*choose from: ddim, pndm"):
        run(config_of(tmp_path, artifacts_dir=tmp_path / "missing", scheduler_label="eulr"))


def test_the_samplers_own_refusals_come_before_the_engines(tmp_path):
    write_artifact(tmp_path / "artifacts", scheduler={"_class_name": "Unheard"})
    with pytest.raises(UserError, match="Unheard"):
        run(config_of(tmp_path))
    assert FakeEngine.calls == []


@pytest.mark.parametrize("flag", ["artifacts", "schema"])
def test_a_bad_artifact_leaves_nothing_behind(tmp_path, flag):
    if flag == "schema":
        write_artifact(tmp_path / "artifacts", schema=999)
    config = config_of(tmp_path, **({"artifacts_dir": tmp_path / "none"} if flag == "artifacts" else {}))
    with pytest.raises(UserError, match="--artifacts-dir" if flag == "artifacts" else "schema 999"):
        run(config)
    assert outputs(tmp_path) == []


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=st.text(max_size=300), negative=st.text(max_size=50))
def test_any_prompt_makes_a_picture(prompt, negative):
    with tempfile.TemporaryDirectory() as folder:
        run(config_of(Path(folder), prompt=prompt, negative_prompt=negative, seed=1))
        (name,) = outputs(Path(folder))
        text = parameters(Path(folder) / "out" / name)
    assert re.search(r"(^|\n)Steps: 3, Sampler: Euler, CFG scale: 7.5, Seed: 1, Size: 20x12, ", text)


# --- the process ---


def start(tmp_path, *flags, **options):
    artifacts = tmp_path / "artifacts"
    if not artifacts.exists():
        write_artifact(artifacts)
    command = [*FAKE_INFERENCE, "--artifacts-dir", str(artifacts), "--output-dir", str(tmp_path / "out"), *flags]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, text=True, **streams)


def test_the_script_makes_a_picture(tmp_path):
    process = start(tmp_path, "--prompt", "a", "--seed", "5", "--output-image", "x.png")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err, outputs(tmp_path)) == (0, "", ["x.png"])
    assert out.startswith("seed 5\n")


@pytest.mark.parametrize("where", ["text_encoder:0", "unet:0", "unet:1", "unet:2", "unet:3", "vae_decoder:0"])
def test_ctrl_c_leaves_nothing_behind(tmp_path, where):
    (tmp_path / "out").mkdir()
    process = start(tmp_path, "--prompt", "a", "--steps", "4", f"--break-at={where}")
    _, err = process.communicate(timeout=60)
    assert (process.returncode, outputs(tmp_path)) == (130, [])
    assert "Traceback" not in err


def test_a_reader_that_goes_away_gets_no_traceback(tmp_path):
    process = start(tmp_path, "--prompt", "a", "--enable-debug", "--steps", "1000")
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) != 0
