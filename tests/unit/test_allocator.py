"""The allocator's settings: a program starts anew with them, once."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import os, sys
print("began", sys.argv[1:], flush=True)
from utils.allocator import HUGE_PAGES, KEPT, restart_with
restart_with(HUGE_PAGES | KEPT)
print(os.environ["MALLOC_ARENA_MAX"], os.environ["GLIBC_TUNABLES"])
"""
SETTINGS = {"GLIBC_TUNABLES": "glibc.malloc.check=0", "MALLOC_TOP_PAD_": "1"}


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_a_program_starts_anew_once_with_its_arguments():
    command = [sys.executable, "-c", PROGRAM, "--flag", "a b"]
    done = subprocess.run(command, cwd=ROOT, env={}, capture_output=True, text=True, check=True)
    began = "began ['--flag', 'a b']"
    assert done.stdout.splitlines() == [began, began, "1 glibc.malloc.hugetlb=1"]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_what_the_user_set_stays():
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=ROOT, env=SETTINGS, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "1 glibc.malloc.check=0"
