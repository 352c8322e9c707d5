import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from fake_artifact import LATENT, SCALE, write_artifact
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.artifact import MANIFEST, SCHEMA, Artifact, describe, sha256, write_manifest
from utils.errors import UserError


@pytest.fixture
def folder(tmp_path):
    return write_artifact(tmp_path / "a", 2)


def change(folder, edit):
    """Rewrite the manifest after ``edit`` has changed its parsed JSON."""
    value = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    edit(value)
    (folder / MANIFEST).write_text(json.dumps(value), encoding="utf-8")


def guided(manifest):
    """Return the guided UNet in a manifest's JSON."""
    return manifest["components"]["unet"]["functions"]["guided"]


def test_a_manifest_is_read_as_it_was_written(folder, tmp_path):
    manifest = Artifact(folder, verify=True).manifest
    assert (manifest.schema, manifest.batch_size, manifest.default_prompt) == (SCHEMA, 2, None)
    assert (manifest.height, manifest.width) == (LATENT[0] * SCALE, LATENT[1] * SCALE)
    functions = manifest.components["unet"].functions
    assert functions["guided"].inputs[0].shape == [4, 4, *LATENT] and functions["guided"].context == "guided_context"
    assert len(functions["guided_context"].outputs) == 2 and functions["guided_context"].context is None
    other = shutil.copytree(folder, tmp_path / "b")
    write_manifest(manifest, other)
    assert (other / MANIFEST).read_bytes() == (folder / MANIFEST).read_bytes()
    assert Artifact(other).manifest == manifest


def test_every_named_file_is_checked(folder):
    artifact = Artifact(folder)
    assert sorted(file.path for file in artifact.files()) == sorted(
        path.name for path in folder.iterdir() if path.name != MANIFEST
    )
    for file in artifact.files():
        assert artifact.path(file) == folder / file.path
        content = artifact.path(file).read_bytes()
        artifact.path(file).write_bytes(content[:-1])
        with pytest.raises(UserError, match=f"{file.path} has {len(content) - 1} bytes instead of {len(content)}"):
            Artifact(folder)
        artifact.path(file).unlink()
        with pytest.raises(UserError, match=f"{file.path} is missing"):
            Artifact(folder)
        artifact.path(file).write_bytes(content)
    Artifact(folder)


def test_a_changed_byte_is_found_by_the_time_stamp_or_by_verify(folder):
    Artifact(folder)
    for path in (Artifact(folder).path(file) for file in Artifact(folder).files()):
        before, content = path.stat(), path.read_bytes()
        for offset in {0, len(content) // 2, len(content) - 1}:
            changed = bytearray(content)
            changed[offset] ^= 1
            path.write_bytes(changed)
            with pytest.raises(UserError, match=f"{path.name} was altered"):
                Artifact(folder)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        Artifact(folder)  # nothing tells but the content, which is not read each time
        with pytest.raises(UserError, match=f"{path.name} was altered"):
            Artifact(folder, verify=True)
        path.write_bytes(content)
        Artifact(folder)


@pytest.mark.parametrize("case", ["no folder", "empty folder", "a file"])
def test_no_artifact_there(tmp_path, case):
    path = tmp_path / "x"
    if case == "empty folder":
        path.mkdir()
    elif case == "a file":
        path.write_text("kept")
    with pytest.raises(UserError, match=r"--artifacts-dir .*run build\.py"):
        Artifact(path)


@pytest.mark.parametrize("schema", [0, SCHEMA + 1, str(SCHEMA), None, True])
def test_another_schema_is_refused(folder, schema):
    change(folder, lambda value: value.update(schema=schema))
    with pytest.raises(UserError, match="build the artifact again"):
        Artifact(folder)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"null"])
def test_a_manifest_that_is_no_json_object(folder, text):
    (folder / MANIFEST).write_bytes(text)
    with pytest.raises(UserError, match=r"manifest\.json.*build the artifact again"):
        Artifact(folder)


@pytest.mark.parametrize(
    ("edit", "where"),
    [
        (lambda m: m.pop("height"), "manifest must have the keys"),
        (lambda m: m.update(surplus=1), "manifest must have the keys"),
        (lambda m: m.update(height="64"), "manifest.height"),
        (lambda m: m.update(height=64.5), "manifest.height"),
        (lambda m: m.update(height=True), "manifest.height"),
        (lambda m: m.update(default_prompt=3), "manifest.default_prompt"),
        (lambda m: m.update(cpu_features=["fma", 2]), r"manifest.cpu_features\[1\]"),
        (lambda m: m.update(components=[]), "manifest.components"),
        (lambda m: m["components"]["unet"].pop("packing"), "manifest.components.unet must have"),
        (
            lambda m: m["components"]["unet"]["functions"]["guided"]["inputs"][1].update(shape=[1, "2"]),
            r"manifest.components.unet.functions.guided.inputs\[1\].shape\[1\]",
        ),
        (lambda m: guided(m).update(outputs={}), "manifest.components.unet.functions.guided.outputs"),
        (lambda m: guided(m).update(outputs=[]), "functions.guided has no outputs"),
        (lambda m: guided(m).pop("context"), "manifest.components.unet.functions.guided must have"),
        (lambda m: guided(m).update(context=1), "manifest.components.unet.functions.guided.context"),
        (lambda m: guided(m).update(context="encode"), "functions.guided can't take its context from 'encode'"),
        (lambda m: guided(m).update(context="guided"), "functions.guided can't take its context from 'guided'"),
        (lambda m: guided(m).update(context="unguided_context"), "can't take its context from 'unguided_context'"),
        (lambda m: guided(m)["inputs"].pop(), "functions.guided can't take its context from 'guided_context'"),
    ],
)
def test_a_manifest_of_wrong_types_names_the_place(folder, edit, where):
    change(folder, edit)
    with pytest.raises(UserError, match=where):
        Artifact(folder)


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b", "\ud800", "circle", ".", ""])
def test_a_path_that_is_none(folder, path):
    (folder / "circle").symlink_to(folder / "circle")
    change(folder, lambda value: value["tokenizer"].update(path=path))
    with pytest.raises(UserError, match="artifact"):
        Artifact(folder)


@pytest.mark.parametrize("path", ["../outside", "/etc/hostname", "sub/../../outside", "link"])
def test_a_path_that_leaves_the_folder_is_refused(folder, path):
    (folder.parent / "outside").write_bytes(b"12345")
    (folder / "link").symlink_to(folder.parent / "outside")
    change(folder, lambda value: value["tokenizer"].update(path=path, size=5))
    with pytest.raises(UserError, match="leaves the artifact's folder"):
        Artifact(folder)


def test_describe_names_the_file_relative_to_the_folder(tmp_path):
    (tmp_path / "params").mkdir()
    path = tmp_path / "params" / "unet.safetensors"
    path.write_bytes(b"abc")
    file = describe(path, tmp_path)
    assert (file.path, file.size) == ("params/unet.safetensors", 3)
    assert file.sha256 == sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_nan_is_never_written(folder):
    manifest = Artifact(folder).manifest
    manifest.components["unet"].psnr["guided"] = float("nan")
    before = (folder / MANIFEST).read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        write_manifest(manifest, folder)
    assert (folder / MANIFEST).read_bytes() == before


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_artifact(tmp_path_factory.mktemp("artifact") / "a")


def places(value, path=()):
    """Yield the path of every node of parsed JSON."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None, max_examples=200)
@given(data=st.data(), junk=JUNK)
def test_junk_anywhere_is_a_users_error_or_harmless(whole, data, junk):
    value = json.loads((whole / MANIFEST).read_text(encoding="utf-8"))
    path = data.draw(st.sampled_from([place for place in places(value) if place]))
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    with tempfile.TemporaryDirectory() as name:
        folder = shutil.copytree(whole, Path(name) / "a")
        parent[path[-1]] = junk
        (folder / MANIFEST).write_text(json.dumps(value), encoding="utf-8")
        try:
            Artifact(folder, verify=True)
        except UserError as error:
            assert "artifact" in str(error)
