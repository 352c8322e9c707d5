"""Builds that are killed, stopped or find no room, at any moment: what was built before still runs."""

import os
import random
import shutil
from pathlib import Path

import pytest
from pictures import read_all
from safetensors.numpy import load_file, save_file

from runtime.artifact import Artifact


class Faults:
    """Two checkpoints that differ in the text encoder, built in turn into one folder by a driver that injects."""

    def __init__(self, driver, models, folder):
        self.driver, self.models, self.outputs = driver, models, folder / "outputs"
        self.artifact, self.pictures = self.outputs / "artifact", folder / "pictures"
        self.outputs.mkdir(parents=True, exist_ok=True)
        self.others = set(self.cached())

    def run(self, script, *flags, **fault):
        return self.driver(script, *flags, roots=(self.outputs, Path(os.environ["TVMERGE_CACHE"])), **fault)

    def build(self, which, **fault):
        return self.run("build", "--model", self.models[which], "--output-dir", self.artifact, **fault)

    def picture(self):
        """Return the picture that the artifact draws, after checking every digest."""
        shutil.rmtree(self.pictures, ignore_errors=True)
        flags = ("--output-dir", self.pictures, "--steps", 2, "--seed", 1, "--prompt", "a cat", "--verify")
        done = self.run("inference", "--artifacts-dir", self.artifact, *flags)
        assert done["code"] == 0, done["stderr"]
        return read_all(self.pictures)[0].tobytes()

    def holds(self):
        """Return which of the models the artifact is of."""
        return [path.name for path in self.models].index(Artifact(self.artifact).manifest.model_name)

    def snapshot(self):
        return {path: path.read_bytes() for path in self.artifact.rglob("*") if path.is_file()}

    @staticmethod
    def cached():
        """Return the text encoders in the cache."""
        return Path(os.environ["TVMERGE_CACHE"]).glob("components/text_encoder-*")

    def forget(self):
        """Remove the models' text encoders from the cache, so that a build has to compile one."""
        for path in set(self.cached()) - self.others:
            shutil.rmtree(path)


@pytest.fixture(scope="module")
def models(v_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    found = [shutil.copytree(v_checkpoint, folder / name) for name in ("one", "other")]
    path = found[1] / "text_encoder" / "model.safetensors"
    save_file({name: value * 1.1 for name, value in load_file(path).items()}, path, {"format": "pt"})
    return found


@pytest.fixture(scope="module")
def faults(driver, models, tmp_path_factory):
    made = Faults(driver, models, tmp_path_factory.mktemp("faults"))
    made.expected = []
    for which in (1, 0):
        assert made.build(which)["code"] == 0
        made.expected.insert(0, made.picture())
    assert made.expected[0] != made.expected[1]
    return made


@pytest.mark.parametrize("kills", [8, pytest.param(48, marks=pytest.mark.long)])
def test_a_build_that_is_killed_at_any_moment(faults, kills):
    """Half of the kills come at a file operation, half at a moment; half of the builds have to compile."""
    rng, wanted = random.Random(kills), 0  # noqa: S311 - moments, not secrets
    for kill in range(kills):
        before, wanted = faults.holds(), 1 - faults.holds()
        if kill % 4 < 2:
            faults.forget()
        whole = faults.build(before)  # of what there is, to leave a cache or none as a build would
        assert whole["code"] == 0 and "up to date" in whole["stdout"]
        fault = {"after": rng.uniform(0.0, 3.0)} if kill % 2 else {"fault": "kill", "at": rng.randrange(1, 30)}
        done = faults.build(wanted, **fault)
        assert done["code"] in (-9, 0), done
        holds = faults.holds()
        assert done["code"] == -9 or holds == wanted
        assert faults.picture() == faults.expected[holds], fault
        again = faults.build(wanted)
        assert again["code"] == 0, again
        assert faults.holds() == wanted and faults.picture() == faults.expected[wanted]
        assert os.listdir(faults.outputs) == ["artifact"], fault


@pytest.mark.parametrize(("fault", "code"), [("term", 130), ("int", 130), ("full", 2)])
def test_a_build_that_is_stopped_or_finds_no_room_at_any_file(faults, fault, code):
    """From the first file operation to the last, all that a build does with files."""
    holds = faults.holds()
    count = faults.build(1 - holds)["operations"]
    assert count > 10
    assert faults.build(holds)["code"] == 0
    for at in range(1, count + 1):
        before = faults.snapshot()
        done = faults.build(1 - holds, fault=fault, at=at)
        assert os.listdir(faults.outputs) == ["artifact"], at
        if faults.holds() == holds:
            assert done["code"] == code and done["stderr"].strip().count("\n") == 0, (at, done)
            assert faults.snapshot() == before
            continue
        assert faults.picture() == faults.expected[1 - holds]  # it came after the new artifact took its place
        assert done["code"] in (0, code) and faults.build(holds)["code"] == 0
