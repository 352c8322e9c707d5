"""The peers on a tiny model: each computes what the reference has, or says why not."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_artifact import write_artifact

from backends import peer, tvm
from backends.converted import Converted
from backends.eager import Eager
from backends.onnxruntime import OnnxRuntime
from backends.openvino import OpenVino
from backends.openvino_picture import PictureConfig
from backends.peer import COMMAND, FUNCTIONS, PEERS, PICTURE, SEED, Settings
from backends.reference import load_parts, make_references
from models.random_checkpoint import random_checkpoint
from runtime.quality import psnr
from utils.errors import UserError


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    common = {"model": "random:tiny", "dtype": "float32", "num_threads": 1, "steps": 2, "artifacts_dir": None}
    made = Settings(**common, height=None, width=72, folder=tmp_path_factory.mktemp("work"))
    return make_references(made, [*FUNCTIONS, COMMAND])


def test_the_reference_settles_size_and_folder(settings):
    assert (settings.height, settings.width) == (64, 72)
    assert settings.model_digest == random_checkpoint("tiny").digest
    assert settings.folder.name == f"random-tiny-{settings.model_digest[:12]}-72x64"
    assert {name: list(settings.inputs(name)) for name in FUNCTIONS} == {
        "unet": ["latent", "timestep", "context"],
        "vae_decoder": ["latent"],
        "text_encoder": ["ids"],
    }
    assert settings.inputs("unet")["latent"].shape == (2, 4, 8, 9), "a guided call"
    picture = settings.reference(COMMAND)
    assert picture.shape == (64, 72, 3) and picture.dtype == np.uint8 and picture.std() > 5


def test_references_are_made_once(settings):
    paths = [settings.component_folder(name) / "reference.npy" for name in (*FUNCTIONS, COMMAND)]
    before = [path.stat().st_mtime_ns for path in paths]
    again = make_references(replace(settings, folder=settings.folder.parent), [*FUNCTIONS, COMMAND])
    assert again == settings and [path.stat().st_mtime_ns for path in paths] == before


@pytest.mark.parametrize("component", FUNCTIONS)
@pytest.mark.parametrize(("dtype", "floor"), [("float32", 100), ("bfloat16", 35)])
def test_eager(settings, component, dtype, floor):
    eager = Eager(replace(settings, dtype=dtype))
    assert eager.prepare(component)["load"] > 0
    output = eager.run(settings.inputs(component))
    quality = psnr(settings.reference(component), output)
    assert output.dtype == np.float32 and quality >= floor and (dtype == "float32" or quality < 100)
    assert {parameter.dtype for parameter in eager.module.parameters()} == {getattr(torch, dtype)}


def test_eager_is_channels_last(settings):
    eager = Eager(settings)
    eager.prepare("vae_decoder")
    weight = eager.module.decoder.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    assert eager._tensor("latent", np.zeros((2, 4, 8, 8), np.float32)).stride() == (256, 1, 32, 4)


def test_compile_compiles_before_it_is_timed(settings, monkeypatch):
    """By dynamo alone: inductor's own compilation takes minutes."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "unused")
    compiled, inductor = [], torch.nn.Module.compile

    def compile_graphs(module, mode):
        assert mode == "default"

        def backend(graph, inputs):
            compiled.append(graph)
            return graph

        inductor(module, backend=backend)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_graphs)
    made = peer.load("compile", settings)
    seconds = made.prepare("text_encoder")
    count = len(compiled)
    assert count > 0 and seconds["compile"] > 0
    output = made.run(settings.inputs("text_encoder"))
    assert psnr(settings.reference("text_encoder"), output) > 100 and len(compiled) == count


def test_every_peer_loads_by_its_name(settings):
    assert [peer.load(name, settings).name for name in PEERS] == list(PEERS)


def test_a_picture_is_not_for_eager(settings):
    with pytest.raises(UserError, match="prepared model"):
        Eager(settings).prepare(COMMAND)


# --- whole pictures ---


def test_eager_draws_the_reference(settings):
    make_references(replace(settings, folder=settings.folder.parent), [PICTURE])
    eager = Eager(settings)
    assert set(eager.prepare(PICTURE)) == {"load"}
    made = eager.draw(SEED, settings.steps)
    assert np.array_equal(made.pictures, settings.reference(PICTURE))
    assert min(made.text_seconds, made.unet_seconds, made.vae_seconds) > 0
    again = eager.draw(SEED, settings.steps)
    assert again.text_seconds > 1e-4, "the prompt is encoded anew"
    assert not np.array_equal(eager.draw(SEED, 1).pictures, made.pictures)
    assert eager.size() is None and eager.peak_memory() > 1e7


def test_eager_draws_a_batch_of_seeds(settings):
    settings = replace(settings, batch_size=2)
    make_references(replace(settings, folder=settings.folder.parent), [PICTURE])
    reference = settings.reference(PICTURE)
    assert len(reference) == 2 and not np.array_equal(*reference)
    eager = Eager(settings)
    eager.prepare(PICTURE)
    assert psnr(reference, eager.draw(SEED, settings.steps).pictures) > 60


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_loop_around_any_models_draws_the_reference(settings, tmp_path, batch_size):
    """With PyTorch's own modules as the models: text encoder, UNet and decoder of the same checkpoint."""
    settings = replace(settings, batch_size=batch_size)
    make_references(replace(settings, folder=settings.folder.parent), [PICTURE])

    class Modules(Converted):
        name = stage = "modules"
        folder = tmp_path

        def write(self, part, folder):
            (folder / "part").write_text(part.name)

        def open(self, folder):
            module = load_parts(settings)[1][(folder / "part").read_text()].module
            return lambda *inputs: module(*(torch.from_numpy(value) for value in inputs)).detach().numpy()

    made = Modules(settings)
    made.convert([PICTURE])
    assert set(made.prepare(PICTURE)) == {"modules", "load"}
    drawn = made.draw(SEED, settings.steps)
    assert len(drawn.pictures) == batch_size and psnr(settings.reference(PICTURE), drawn.pictures) > 60
    assert made.size() > 10


@pytest.mark.parametrize(
    ("changes", "variant"),
    [
        ({}, "float32"),
        ({"dtype": "bfloat16", "tome_ratio": 0.5}, "bfloat16-tome-0.5"),
        ({"attention": "math"}, "float32-math"),
        ({"batch_size": 4}, "float32-batch-4"),
    ],
)
def test_what_is_run_of_a_model_has_a_folder_of_its_own(settings, changes, variant):
    other = replace(settings, **changes)
    assert other.variant == variant and other.artifact == settings.folder / f"artifact-{variant}"
    assert replace(settings, disable="layout").variant != replace(settings, disable="fusion").variant
    assert replace(settings, artifacts_dir=settings.folder).artifact == settings.folder


def test_the_sampler_and_steps_name_the_picture(settings):
    other = replace(settings, scheduler_label="euler", steps=3)
    assert other.component_folder(PICTURE).name == "picture-3-steps-euler"
    assert other.component_folder("unet") == settings.component_folder("unet")


# --- tvm ---


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({"tome_ratio": 0.25}, {"--tome-ratio": 0.25}),
        ({"batch_size": 2}, {"--batch-size": 2}),
        ({"disable": "layout,fusion"}, {"--disable": "layout,fusion", "--enable-cache": 0}),
    ],
)
def test_the_build_has_the_variant_s_flags(built, changes, flags):
    settings, builds = built
    tvm.Tvm(replace(settings, **changes)).convert(["unet"])
    ((arguments, given),) = builds
    assert ("--apply-tome" in arguments) == ("tome_ratio" in changes)
    assert flags.items() <= given.items()


@pytest.fixture
def built(settings, tmp_path, monkeypatch):
    """Settings of an artifact without native code, and the flags of each build that was run."""
    builds = []

    def run_python(arguments, flags):
        builds.append((list(arguments), dict(flags)))
        match = {"model_digest": settings.model_digest, "height": 64, "width": 72}
        match["dtype"] = flags.get("--dtype", "float32")
        write_artifact(flags["--output-dir"], flags.get("--batch-size", 1), **match)

    monkeypatch.setattr(tvm, "run_python", run_python)
    return replace(settings, folder=tmp_path), builds


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_artifact_is_built_by_build_py_which_knows_what_changed(built, dtype):
    settings, builds = built
    tvm.Tvm(replace(settings, dtype=dtype)).convert(["unet"])
    ((arguments, flags),) = builds
    folder = settings.folder / f"artifact-{dtype}"
    size = {"--height": 64, "--width": 72}
    expected = {"--model": "random:tiny", "--target": "llvm", "--output-dir": folder, **size, "--num-threads": 1}
    assert arguments == ["build.py"]
    assert flags == expected | ({"--dtype": "bfloat16"} if dtype == "bfloat16" else {})


def test_a_build_that_fails_says_why(built, monkeypatch):
    def run_python(arguments, flags):
        raise UserError("out of luck")

    monkeypatch.setattr(tvm, "run_python", run_python)
    with pytest.raises(UserError, match=r"build\.py: out of luck"):
        tvm.Tvm(built[0]).convert(["unet"])


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("height", 128, "height 128, not 64"),
        ("dtype", "bfloat16", "dtype bfloat16, not float32"),
        ("batch_size", 2, "batch size 2, not 1"),
        ("model_digest", "0" * 64, "model 0000"),
    ],
)
def test_an_artifact_of_something_else_is_refused(built, tmp_path, field, value, words):
    settings, builds = built
    same = {"model_digest": settings.model_digest, "height": 64, "width": 72}
    folder = write_artifact(tmp_path / "given", **same | {field: value})
    with pytest.raises(UserError, match=words):
        tvm.Tvm(replace(settings, artifacts_dir=folder)).convert(["unet"])
    assert builds == []


def test_run_python_tells_the_last_line():
    tvm.run_python(["-c", "import sys; assert sys.argv[1:] == ['--steps', '3']"], {"--steps": 3})
    with pytest.raises(UserError, match=r"^no luck$"):
        tvm.run_python(["-c", "import sys; print('a\\nerror: no luck', file=sys.stderr); sys.exit(2)"], {})
    with pytest.raises(UserError, match="exit code 3"):
        tvm.run_python(["-c", "import sys; sys.exit(3)"], {})


# --- openvino and onnxruntime ---


def test_openvino_that_is_not_installed(settings, monkeypatch):
    monkeypatch.setattr("backends.converted.find_spec", lambda name: None)
    assert "pip install -r requirements-bench.txt" in OpenVino(settings).unavailable()


def test_openvino_computes_the_same(settings):
    pytest.importorskip("openvino")
    made = OpenVino(settings)
    made.convert(["text_encoder"])
    (folder,) = settings.folder.glob("openvino-*")
    written = (folder / "text_encoder" / "model.xml").stat().st_mtime_ns
    made.convert(["text_encoder"])
    assert (folder / "text_encoder" / "model.xml").stat().st_mtime_ns == written
    assert set(made.prepare("text_encoder")) == {"convert", "load"}
    assert psnr(settings.reference("text_encoder"), made.run(settings.inputs("text_encoder"))) > 100
    assert sorted(os.listdir(folder)) == ["text_encoder"]


def test_onnxruntime_computes_the_same(settings):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    made = OnnxRuntime(settings)
    made.convert(["text_encoder"])
    assert set(made.prepare("text_encoder")) == {"export", "load"}
    assert psnr(settings.reference("text_encoder"), made.run(settings.inputs("text_encoder"))) > 100


def test_onnxruntime_has_no_bfloat16(settings):
    assert "no bfloat16" in OnnxRuntime(replace(settings, dtype="bfloat16")).unavailable()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({}, "no pipeline.json there"),
        ({"dtype": "float16"}, "choose from: float32, bfloat16"),
        ({"steps": 0}, "--steps"),
    ],
)
def test_pictures_of_openvino_refuse_bad_flags(tmp_path, flags, words):
    with pytest.raises(UserError, match=words):
        PictureConfig(model_dir=tmp_path, output_dir=tmp_path, **flags)


def test_pictures_of_openvino_are_guided(tmp_path):
    (tmp_path / "pipeline.json").write_text("{}")
    with pytest.raises(UserError, match="--guidance-scale must be more than 1"):
        PictureConfig(model_dir=tmp_path, output_dir=tmp_path, guidance_scale=1.0)
