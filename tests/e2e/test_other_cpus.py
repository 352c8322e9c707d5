"""build.py --cpu: code for another CPU, run here or built for where it can run; features that the user hides."""

import json
import os

import pytest
from pictures import picture_psnr, read_all

from compiler.target import resolve_target, why_not_here
from utils.features import HIDE
from utils.targets import architecture

V3, RUN = "x86-64-v3", ("--steps", 4, "--seed", 5, "--scheduler-label", "ddim")
V3_ONLY = {"avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe"}

pytestmark = pytest.mark.skipif(
    architecture() != "x86_64" or why_not_here(resolve_target("llvm", cpu=V3)) is not None,
    reason="this CPU has no AVX2",
)


def build_flags(folder, *flags):
    return ("build.py", "--model", "random:tiny", "--output-dir", folder, "--cpu", V3, *flags)


def without_avx2():
    return {**os.environ, HIDE: "avx2"}


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


@pytest.fixture(scope="module")
def here(good_script, tmp_path_factory):
    """An artifact for x86-64-v3, and what its build said."""
    folder = tmp_path_factory.mktemp("v3") / "artifact"
    return folder, good_script(*build_flags(folder)).stdout


@pytest.fixture(scope="module")
def elsewhere(good_script, tmp_path_factory):
    """The same, built by a machine without AVX2."""
    folder = tmp_path_factory.mktemp("v3") / "artifact"
    return folder, good_script(*build_flags(folder), env=without_avx2()).stdout


@pytest.fixture(scope="module")
def picture(good_script, tmp_path_factory):
    def draw(artifact):
        folder = tmp_path_factory.mktemp("pictures")
        done = good_script("inference.py", "--artifacts-dir", artifact, "--output-dir", folder, *RUN)
        (drawn,) = read_all(folder)
        return drawn, done.stdout

    return draw


def test_code_for_any_cpu_with_avx2_is_verified_here_and_draws_the_same(here, tiny_artifact, picture):
    folder, said = here
    assert said.count(": verified in") == 3 and f"for {V3}" in said
    described = manifest(folder)
    assert described["target"] == {"kind": "llvm", "mcpu": V3}
    features = set(described["cpu_features"])
    assert features >= V3_ONLY and not any(name.startswith(("avx512", "avxvnni", "amx", "vaes")) for name in features)
    assert all(part["references"] is None for part in described["components"].values())
    assert picture_psnr(picture(folder)[0], picture(tiny_artifact)[0]) >= 40


def test_what_can_not_run_here_is_built_and_verified_where_it_can(elsewhere, tiny_artifact, script, picture, tmp_path):
    folder, said = elsewhere
    told = "parity was not run, as this CPU lacks avx2"
    assert said.count(told) == 3 and said.count("the first run on such a machine verifies it") == 3
    for part in manifest(folder)["components"].values():
        assert part["psnr"] == {} and part["references"] is not None
    refused = script("inference.py", "--artifacts-dir", folder, "--output-dir", tmp_path, env=without_avx2())
    assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1
    assert "this CPU lacks avx2" in refused.stderr and "--cpu x86-64-v3" in refused.stderr
    drawn, first = picture(folder)
    assert first.count(": verified on ") == 3 and "verified on" not in picture(folder)[1]
    assert picture_psnr(drawn, picture(tiny_artifact)[0]) >= 40


def test_the_build_where_it_can_run_does_not_take_what_was_not_verified(elsewhere, here):
    assert "taken from the cache" not in here[1]


def test_what_is_hidden_is_not_used(good_script, tmp_path):
    """The host's own target, on a machine that hides AVX2: it builds, verifies and draws."""
    flags = ("--model", "random:tiny", "--output-dir", tmp_path / "a")
    said = good_script("build.py", *flags, env=without_avx2()).stdout
    assert said.count(": verified in") == 3 and not {"avx2", "avx512f"} & set(manifest(tmp_path / "a")["cpu_features"])


@pytest.mark.parametrize(
    ("flags", "environ", "words"),
    [
        (("--cpu", "haswel"), {}, ["--cpu 'haswel'", "did you mean haswell"]),
        (("--cpu", V3, "--target", "cuda"), {}, ["--cpu does nothing for cuda"]),
        (("--cpu", V3, "--dtype", "bfloat16"), {}, ["--dtype bfloat16", "--dtype float32", "--cpu"]),
        (("--cpu", V3, "--tune-trials", 1), {HIDE: "avx2"}, ["this CPU lacks avx2", "--cpu native"]),
        ((), {HIDE: "avx521"}, [HIDE, "did you mean avx512"]),
    ],
)
def test_mistakes_are_one_line(script, tmp_path, flags, environ, words):
    command = ("build.py", "--model", "random:tiny", "--output-dir", tmp_path / "a", *flags)
    done = script(*command, env={**os.environ, **environ})
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
