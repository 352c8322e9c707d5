"""Manifests and parameter headers with anything in them: a picture, or one line. No traceback, no crash."""

import copy
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from utils.digests import sha256

MANY = pytest.param(1200, marks=pytest.mark.long)
JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=20), st.just([]), st.just({})
)


@pytest.fixture(scope="module")
def spoilt(tiny_artifact, tmp_path_factory):
    """A copy of an artifact of which only the manifest and the UNet's parameters are changed."""
    return shutil.copytree(tiny_artifact, tmp_path_factory.mktemp("fuzz") / "artifact")


def places(value, path=()):
    """Yield the path of every node of parsed JSON."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


def node(value, path):
    for key in path:
        value = value[key]
    return value


def spoil(data, value):
    """Put something else in one place: junk, or what stands in another place and may be of the right type."""
    paths = [path for path in places(value) if path]
    to = data.draw(st.sampled_from(paths))
    same = [path for path in paths if type(node(value, path)) is type(node(value, to))]
    other = data.draw(JUNK | st.sampled_from(same).map(lambda path: node(value, path)))
    if type(node(value, to)) is int:
        other = data.draw(st.just(other) | st.integers(-2, 2).map(lambda change: node(value, to) + change))
    node(value, to[:-1])[to[-1]] = copy.deepcopy(other)  # or it might hold itself


def check(driver, folder):
    """Draw with what is there. Sizes that this machine has no memory for are refused too."""
    flags = ("--artifacts-dir", folder, "--output-dir", folder.parent / "out", "--steps", 1, "--prompt", "a cat")
    done = driver("inference", *flags)
    assert done["code"] in (0, 2), done
    if done["code"] == 2:
        assert done["stderr"].startswith("error: ") and done["stderr"].count("\n") == 1, done["stderr"]


def examples(count):
    unhealthy = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
    return settings(deadline=None, max_examples=count, database=None, suppress_health_check=unhealthy)


@pytest.mark.parametrize("count", [40, MANY])
def test_a_manifest_with_anything_in_it(driver, spoilt, tiny_artifact, count):
    @examples(count)
    @given(data=st.data())
    def fuzz(data):
        value = json.loads((tiny_artifact / "manifest.json").read_text(encoding="utf-8"))
        for _ in range(data.draw(st.integers(1, 2))):
            spoil(data, value)
        (spoilt / "manifest.json").write_text(json.dumps(value), encoding="utf-8")
        check(driver, spoilt)

    fuzz()


@pytest.mark.parametrize("count", [20, MANY])
def test_a_parameter_header_with_anything_in_it(driver, spoilt, tiny_artifact, count):
    manifest = json.loads((tiny_artifact / "manifest.json").read_text(encoding="utf-8"))
    entry = manifest["components"]["unet"]["parameters"]
    whole = Path(tiny_artifact / entry["path"]).read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    path = spoilt / entry["path"]

    @examples(count)
    @given(data=st.data())
    def fuzz(data):
        header = json.loads(whole[8:start])
        spoil(data, header)
        text = json.dumps(header).encode()
        text += b" " * (-(len(text) + 8) % 64)
        path.write_bytes(len(text).to_bytes(8, "little") + text + whole[start:])
        entry.update(size=path.stat().st_size, sha256=sha256(path))
        (spoilt / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        check(driver, spoilt)

    fuzz()
    path.write_bytes(whole)
