"""What build.py --target cuda makes, with the GPU emulated: files, parity at the first run, a picture."""

import shutil

import numpy as np
import pytest
from gpu_emulator import stand_in_for_gpu

from compiler import build
from runtime.artifact import Artifact
from runtime.engine import Engine
from runtime.pipeline import Pipeline, Request
from runtime.quality import FLOOR, psnr
from utils.config import BuildConfig
from utils.errors import UserError

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="CUDA's headers are needed")
STEPS, SEED = 2, 3


def made(folder, **flags):
    return Artifact(build(BuildConfig(model="random:tiny", output_dir=folder, enable_cache=0, **flags)))


def picture(pipeline):
    *_, last = pipeline.sample(Request(prompt="a cat", steps=STEPS), [SEED])
    return pipeline.decode(last.x_t)


@pytest.fixture(scope="module")
def emulation():
    with pytest.MonkeyPatch.context() as patch:
        stand_in_for_gpu(patch)
        yield


@pytest.fixture(scope="module")
def built(emulation, tmp_path_factory):
    """An artifact for sm_80, and what the build said."""
    return made(tmp_path_factory.mktemp("built") / "a", target="cuda", cuda_arch="sm_80")


def test_the_artifact_says_what_it_is_for_and_that_parity_was_not_run(built):
    manifest = built.manifest
    assert manifest.target == {"kind": "cuda", "arch": "sm_80"} and manifest.dtype == "float16" and manifest.on_gpu
    for component in manifest.components.values():
        assert component.psnr == {} and component.references is not None
        assert component.device is not None and component.device.launches
        for launch in component.device.launches.values():
            assert any(parameter.startswith("threadIdx") for parameter in launch.parameters)
    for name in ("text_encoder", "unet", "vae_decoder"):
        origins = {kernel.origin for kernel in manifest.components[name].kernels.values()}
        assert {"tensor_multiply", "tensor_attention"} < origins


def test_the_vae_is_computed_in_a_type_that_holds_its_numbers(built):
    sources = {name: (built.folder / f"{name}.cubin").read_text() for name in ("vae_decoder", "unet")}
    assert "nv_bfloat16" in sources["vae_decoder"] and "nv_bfloat16" not in sources["unet"]


def test_first_run_verifies_and_draws_what_the_cpu_draws(built, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TVMERGE_CACHE", str(tmp_path / "cache"))
    pipeline = Pipeline(built)
    said = capsys.readouterr().out
    assert all(f"{name}: verified on" in said for name in built.manifest.components)
    drawn = picture(pipeline)
    on_cpu = picture(Pipeline(made(tmp_path / "cpu", target="llvm")))
    assert psnr(on_cpu, drawn) >= 30
    _reads_latents_of_any_step(pipeline)
    capsys.readouterr()
    Pipeline(built)
    assert "verified" not in capsys.readouterr().out
    _refuses_wrong_results(built, monkeypatch, tmp_path)


def _reads_latents_of_any_step(pipeline):
    request = Request(prompt="a cat", steps=1, guidance_scale=1, scheduler_label="euler-ancestral")
    (step,) = pipeline.sample(request, [SEED])
    assert np.isfinite(step.x_t).all() and step.x_t.shape == step.eps.shape == (1, *pipeline.latent_shape)


def _refuses_wrong_results(built, monkeypatch, tmp_path):
    call = Engine.__call__
    monkeypatch.setenv("TVMERGE_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(Engine, "__call__", lambda self, *inputs: call(self, *inputs) * np.float32(1.1))
    with pytest.raises(UserError, match=rf"text_encoder.encode: PSNR .* below the floor of {FLOOR['float16']:.0f} dB"):
        Pipeline(built)


def test_too_little_memory_is_refused(built, monkeypatch):
    import tvm

    monkeypatch.setattr(tvm.runtime.Device, "available_global_memory", 1000)
    with pytest.raises(UserError, match=r"memory for parameters.*1 kB are free"):
        Pipeline(built)


def test_machine_code_is_checked_as_every_other_file(built, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(built.folder, copy)
    code = copy / built.manifest.components["unet"].device.code.path
    code.write_bytes(code.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"unet\.cubin has"):
        Artifact(copy)
    code.unlink()
    with pytest.raises(UserError, match=r"unet\.cubin is missing"):
        Artifact(copy)
