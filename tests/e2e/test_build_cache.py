"""Builds that find what was built before, and builds that meet in one folder."""

import fcntl
import re
import subprocess
import sys
import time

from pictures import picture_psnr, read_all

from runtime.artifact import Artifact
from utils.config import ROOT

LOADED = """
import sys, runpy
sys.argv = ["build.py", *sys.argv[1:]]
runpy.run_path("build.py", run_name="__main__")
assert not {"torch", "tvm", "diffusers"} & set(sys.modules)
"""


def test_an_identical_build_ends_before_torch_or_tvm_is_imported(good_script, tiny_artifact):
    before = {path: path.stat().st_mtime_ns for path in tiny_artifact.rglob("*")}
    times = []
    for _ in range(5):
        start = time.perf_counter()
        done = good_script("-c", LOADED, "--model", "random:tiny", "--output-dir", tiny_artifact)
        times.append(time.perf_counter() - start)
        assert "is up to date" in done.stdout
    assert min(times) < 2
    assert {path: path.stat().st_mtime_ns for path in tiny_artifact.rglob("*")} == before


def seconds(folder):
    """Return the seconds that each component's build took, whenever that was."""
    return {name: part.build_seconds for name, part in Artifact(folder).manifest.components.items()}


def test_an_optimisation_of_the_unet_rebuilds_the_unet(good_script, tiny_artifact, tmp_path):
    flags = ("--model", "random:tiny", "--output-dir", tmp_path / "a", "--disable", "cached_context")
    said = good_script("build.py", *flags).stdout
    assert re.search(r"^unet: to be built, not built before$", said, re.M)
    for component in ("text_encoder", "vae_decoder"):
        assert f"{component}: unchanged, taken from the cache" in said
        assert f"{component}: traced" not in said
        assert seconds(tmp_path / "a")[component] == seconds(tiny_artifact)[component]
    assert all(value > 0 for value in seconds(tmp_path / "a").values())
    run = ("--steps", 4, "--seed", 3, "--prompt", "a cat")
    drawn = []
    for artifact, folder in ((tiny_artifact, tmp_path / "one"), (tmp_path / "a", tmp_path / "two")):
        good_script("inference.py", "--artifacts-dir", artifact, "--output-dir", folder, "--verify", *run)
        drawn.append(read_all(folder)[0])
    assert picture_psnr(*drawn) >= 40


def start(*flags):
    command = [sys.executable, "-u", "build.py", *map(str, flags)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_second_build_into_a_folder_waits_or_fails_at_once(script, tiny_artifact, tmp_path):
    """All of it is in the cache, so that neither build takes long."""
    output = tmp_path / "a"
    flags = ("--model", "random:tiny", "--output-dir", output)
    with (tmp_path / ".a.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("process 1 on elsewhere (since 12:00:00)\n")
        lock.flush()
        refused = script("build.py", *flags, "--no-wait")
        assert refused.returncode == 2
        assert "process 1 on elsewhere" in refused.stderr and refused.stderr.count("\n") == 1
        waiting = start(*flags)
        assert "waiting for process 1 on elsewhere" in waiting.stdout.readline()
        time.sleep(0.3)
        assert waiting.poll() is None and not output.exists()
    said, errors = waiting.communicate(timeout=120)
    assert waiting.returncode == 0, errors
    assert "unet: unchanged, taken from the cache" in said
    assert {path.name for path in tmp_path.iterdir()} == {"a"}
