"""inference.py and bad input, with a real artifact: exit code 2, one line that helps, no picture."""

import json
import os
import re
import shutil

import pytest

from utils.digests import sha256

OUTPUT = "out"


@pytest.fixture
def artifact(tiny_artifact, tmp_path):
    """A copy of an artifact that a test may damage."""
    return shutil.copytree(tiny_artifact, tmp_path / "artifact")


@pytest.fixture
def refused(script, artifact, tmp_path):
    """Run inference.py on the copy, check that it is refused in one line without a picture, and return the line."""

    def run(*flags):
        output = tmp_path / OUTPUT
        done = script("inference.py", "--artifacts-dir", artifact, "--output-dir", output, "--steps", 2, *flags)
        assert done.returncode == 2, done.stdout + done.stderr
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
        assert not output.exists() or os.listdir(output) == []
        return lines[0]

    return run


def edit(artifact, **changes):
    path = artifact / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--scheduler-label", "eular"], ["--scheduler-label", "'eular'", "did you mean euler", "ddim", "dpmpp-2m"]),
        (["--device", "gpu"], ["--device", "'gpu'", "auto, cpu, cuda"]),
        (["--device", "cuda"], ["--device cuda"]),
        (["--steps", "0"], ["--steps", "from 1 to 1000"]),
        (["--steps", "-1"], ["--steps", "from 1 to 1000"]),
        (["--steps", "1001"], ["--steps", "from 1 to 1000"]),
        (["--steps", "2.5"], ["--steps", "2.5"]),
        (["--guidance-scale", "nan"], ["--guidance-scale", "nan"]),
        (["--guidance-scale", "inf"], ["--guidance-scale", "inf"]),
        (["--seed", "-1"], ["--seed", "2^64-1"]),
        (["--seed", str(2**64)], ["--seed", "2^64-1"]),
        (["--num-images", "0"], ["--num-images", "from 1"]),
        (["--num-threads", "0"], ["--num-threads", "from 1"]),
        (["--output-image", "picture.jpg"], ["--output-image", ".png"]),
        (["--artefacts-dir", "x"], ["--artefacts-dir", "did you mean --artifacts-dir"]),
    ],
)
def test_bad_flags(refused, flags, words):
    line = refused(*flags)
    assert all(word in line for word in words), line


def test_artifacts_that_are_missing(refused, artifact):
    assert "nowhere" in refused("--artifacts-dir", artifact / "nowhere")
    (artifact / "manifest.json").unlink()
    assert "--artifacts-dir" in refused()


@pytest.mark.parametrize("schema", [0, 99, None, "1"])
def test_another_schema(refused, artifact, schema):
    edit(artifact, schema=schema)
    assert f"schema {schema!r}" in refused()


@pytest.mark.parametrize("name", ["unet.so", "tokenizer.json", "params/vae_decoder.safetensors"])
def test_a_missing_or_truncated_file(refused, artifact, name):
    path = artifact / name
    path.write_bytes(path.read_bytes()[:-1])
    assert str(path) in refused()
    path.unlink()
    assert f"{path} is missing" in refused()


def replace(artifact, name, change):
    """Change a file of the UNet and its entry in the manifest, as another build might have made them."""
    path = artifact / "manifest.json"
    manifest = json.loads(path.read_text())
    entry = manifest["components"]["unet"][name]
    file = artifact / entry["path"]
    file.write_bytes(change(file.read_bytes()))
    entry |= {"size": file.stat().st_size, "sha256": sha256(file)}
    path.write_text(json.dumps(manifest))
    return file


AARCH64 = (183).to_bytes(2, "little")  # ELF's e_machine
LIBRARIES = {
    "no library": lambda data: b"\0" * len(data),
    "another platform's": lambda data: data[:18] + AARCH64 + data[20:],
    "cut short": lambda data: data[:5000],
}


@pytest.mark.parametrize("which", LIBRARIES)
def test_a_library_that_is_none_here(refused, artifact, which):
    file = replace(artifact, "library", LIBRARIES[which])
    assert f"{file} can't be loaded here" in refused()


def test_a_garbled_parameter_file(refused, artifact):
    assert str(replace(artifact, "parameters", lambda data: b"\xff" * len(data))) in refused()


def test_too_little_memory_is_said_before_anything_is_loaded(refused, artifact):
    components = json.loads((artifact / "manifest.json").read_text())["components"]
    assert components["unet"]["functions"]["guided"]["workspace"] > 10_000
    components["unet"]["functions"]["guided"]["workspace"] = 1 << 50
    edit(artifact, components=components)
    assert "1.13e+03 TB for tensors" in refused()


def test_one_changed_byte(refused, good_script, artifact, tmp_path):
    run = ("inference.py", "--artifacts-dir", artifact, "--output-dir", tmp_path / "fine", "--steps", 1)
    good_script(*run)
    path = artifact / "params" / "vae_decoder.safetensors"
    before, data = path.stat(), bytearray(path.read_bytes())
    data[-70] ^= 1
    path.write_bytes(bytes(data))
    assert f"{path} was altered" in refused()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    good_script(*run)
    assert f"{path} was altered" in refused("--verify"), "the time stamp does not tell"


def test_nan_names_step_and_component_and_debug_the_kernel(script, artifact, tmp_path):
    def spoil(data):
        start = 8 + int.from_bytes(data[:8], "little")
        return data[:start] + b"\xff" * (len(data) - start)  # every weight is NaN

    replace(artifact, "parameters", spoil)
    flags = ("--artifacts-dir", artifact, "--output-dir", tmp_path / OUTPUT, "--steps", 3)
    done = script("inference.py", *flags, "--enable-debug")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert re.match(r"error: unet: \d+ of \d+ values are NaN or Inf at step 1 of \d \(timestep \d+\)", done.stderr)
    first = json.loads(done.stdout.splitlines()[-1])
    assert first.keys() == {"first", "component", "kernel"} and first["first"] == "nan" and first["component"] == "unet"
    assert not any((tmp_path / OUTPUT).glob("*"))


def test_a_cpu_that_lacks_an_instruction_set(refused, artifact):
    edit(artifact, cpu_features=["avx2", "avx1024"])
    line = refused()
    assert "avx1024" in line and "avx2," not in line


def test_a_path_out_of_the_folder(refused, artifact):
    tokenizer = json.loads((artifact / "manifest.json").read_text())["tokenizer"]
    edit(artifact, tokenizer={**tokenizer, "path": "../tokenizer.json"})
    assert "leaves the artifact's folder" in refused()


def test_an_output_folder_that_is_a_file(script, tiny_artifact, tmp_path):
    (tmp_path / "file").write_text("kept")
    done = script("inference.py", "--artifacts-dir", tiny_artifact, "--output-dir", tmp_path / "file", "--steps", 1)
    assert done.returncode == 2 and "--output-dir" in done.stderr and done.stderr.count("\n") == 1
    assert (tmp_path / "file").read_text() == "kept"
