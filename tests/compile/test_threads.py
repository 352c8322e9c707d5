"""Threads stay where the process was put, and are as many as were asked for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.config import ROOT
from utils.cpu import physical_cores

PROBE = Path(__file__).with_name("thread_probe.py")
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
UNBOUND = {key: value for key, value in os.environ.items() if not key.startswith(("TVM_", "OMP_"))}
ALONE = {"OPENBLAS_NUM_THREADS": "1"}  # NumPy's threads are not ours

pytestmark = pytest.mark.skipif(not CORES, reason="the system has no masks")


def start(*flags, mask=None, **environ):
    """Start the probe as a user would under taskset."""

    def put():
        if mask is not None:
            os.sched_setaffinity(0, mask)

    command = [sys.executable, str(PROBE), *map(str, flags)]
    return subprocess.Popen(
        command, cwd=ROOT, env={**UNBOUND, **ALONE, **environ}, stdout=subprocess.PIPE, text=True, preexec_fn=put
    )


def answer(process):
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    told = json.loads(out.splitlines()[-1])
    return told["threads"], told["found"]


@pytest.mark.parametrize("core", sorted({*CORES[:1], *CORES[-1:]}))
def test_all_threads_keep_the_mask(core):
    """TVM by itself moves them to cores that it counts from 0."""
    threads, found = answer(start(2, mask={core}))
    assert threads == 2 and len(found) >= 2 and {(mask, cpu) for mask, cpu in found} == {(str(core), core)}


def test_as_many_threads_as_cores_and_no_more():
    threads, found = answer(start())
    assert threads == physical_cores() == len(found)


@pytest.mark.skipif(len(CORES) < 2, reason="one core only")
def test_two_runs_at_once_do_not_share_a_core():
    processes = [start(1, mask={core}) for core in (CORES[0], CORES[-1])]
    one, two = ({cpu for _, cpu in answer(process)[1]} for process in processes)
    assert one == {CORES[0]} and two == {CORES[-1]}
