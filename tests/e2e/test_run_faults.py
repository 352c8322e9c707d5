"""inference.py where its surroundings fail: no room, nobody who listens, another process at the same artifact."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from pictures import read_all

from utils.config import ROOT

FLAGS = ("--steps", "4", "--seed", "3", "--prompt", "a cat")


def start(artifact, output, *flags, **options):
    command = [sys.executable, "inference.py", "--artifacts-dir", artifact, "--output-dir", output, *FLAGS, *flags]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, **options)


def test_a_disk_that_fills_leaves_no_broken_picture(tiny_artifact, tmp_path):
    def no_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # bytes; the picture takes more

    _, said = (done := start(tiny_artifact, tmp_path / "out", preexec_fn=no_room)).communicate(timeout=300)
    assert done.returncode == 2 and said.count("\n") == 1
    assert said.startswith(f"error: --output-dir {tmp_path / 'out'}: the picture can't be written (File too large)")
    assert os.listdir(tmp_path / "out") == []


def test_a_full_device_for_what_is_printed(tiny_artifact, tmp_path):
    with open("/dev/full", "w") as full:
        _, said = (done := start(tiny_artifact, tmp_path / "out", stdout=full)).communicate(timeout=300)
    assert (done.returncode, said) == (2, "error: the output can't be written: No space left on device\n")


def test_nobody_listens(tiny_artifact, tmp_path):
    """Stdout and stderr may be closed from the start; the picture is drawn all the same."""
    command = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", sys.executable, "inference.py", "--steps", "2"]
    flags = ["--artifacts-dir", tiny_artifact, "--output-dir", tmp_path / "out"]
    assert subprocess.run(command + flags, cwd=ROOT, timeout=300).returncode == 0
    assert len(read_all(tmp_path / "out")) == 1


def shared_pages(pid, path):
    """Return kilobytes of a file's pages in a process: in memory, shared, and copied (anonymous)."""
    text = Path(f"/proc/{pid}/smaps").read_text()
    blocks = [block for block in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", text) if str(path) in block.partition("\n")[0]]
    values = {key: 0 for key in ("Rss", "Shared_Clean", "Shared_Dirty", "Anonymous")}
    for block in blocks:
        for key in values:
            values[key] += int(re.search(rf"^{key}:\s+(\d+) kB", block, re.M)[1])
    return values


HELD = """
import sys, time
sys.modules["torch"] = None
from pathlib import Path
from runtime.artifact import Artifact
from runtime.pipeline import Pipeline, Request
pipeline = Pipeline(Artifact(Path(sys.argv[1])))
for step in pipeline.sample(Request(prompt="a cat", steps=1), [3]):
    pass
print("drawn", flush=True)
sys.stdin.read()
"""


def test_two_processes_share_the_parameters(tiny_artifact):
    path = tiny_artifact / "params" / "unet.safetensors"
    command = [sys.executable, "-c", HELD, tiny_artifact]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    both = [subprocess.Popen(command, cwd=ROOT, text=True, **pipes) for _ in range(2)]
    try:
        assert all(process.stdout.readline() == "drawn\n" for process in both)
        for process in both:
            pages = shared_pages(process.pid, path)
            shared = pages["Shared_Clean"] + pages["Shared_Dirty"]  # dirty: not on the disk yet
            assert pages["Anonymous"] == 0 and shared >= 0.95 * pages["Rss"], pages
            used = 0.5 * path.stat().st_size / 1024  # the rest is what the function without guidance packs otherwise
            assert pages["Rss"] >= used, pages
    finally:
        for process in both:
            process.communicate(timeout=60)


def test_two_processes_draw_the_same_picture_at_once(tiny_artifact, tmp_path):
    both = [start(tiny_artifact, tmp_path / "out", stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.communicate(timeout=300)[1] for process in both] == ["", ""]
    one, other = read_all(tmp_path / "out")
    assert (one == other).all()


@pytest.mark.parametrize("signal", ["int", "term"])
def test_an_interrupted_run_says_so_and_leaves_whole_pictures(driver, tiny_artifact, tmp_path, signal):
    """At each file operation: pictures that were finished stay, and nothing half-written does."""
    out = tmp_path / "out"
    flags = ("--artifacts-dir", tiny_artifact, "--output-dir", out, "--num-images", 3, *FLAGS)
    assert driver("inference", *flags)["code"] == 0 and len(read_all(out)) == 3
    count = driver("inference", *flags, roots=(out,))["operations"]
    assert count >= 7 and len(read_all(out)) == 6
    for at in range(1, count + 1):
        before = len(read_all(out))
        done = driver("inference", *flags, roots=(out,), fault=signal, at=at)
        assert done["code"] == 130 and "interrupted" in done["stderr"], json.dumps(done)
        assert before <= len(read_all(out)) <= before + 3  # reads each one, and refuses any other file
