"""What this machine reaches: float32 multiplies and copies of memory, the roofs that kernels are measured against.

NumPy's multiply (OpenBLAS) and copy are the measure, which every machine has and both sides of a comparison share.
They run in a process of their own with as many threads as the run has. Kernels can be above the first roof: tile
registers are faster than the instructions that OpenBLAS uses, and Winograd computes less than the convolution that it
stands for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np

from utils.config import ROOT
from utils.decoding import decode
from utils.errors import UserError

HOW = "NumPy: float32 multiply of 1536x1536, copy of 128 MiB (read and written), best of half a second each"
SIZE = 1536
COPIED = 1 << 25  # numbers
SECONDS = 0.5  # for each of both, and no less than ROUNDS
ROUNDS = 3
TIMEOUT = 120
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@dataclass(frozen=True)
class Peak:
    """The highest rates measured with ``num_threads`` threads, and how."""

    flops_per_second: float
    bytes_per_second: float
    num_threads: int
    how: str

    @property
    def ridge(self) -> float:
        """FLOPs a byte above which the first roof is the lower one."""
        return self.flops_per_second / self.bytes_per_second


def _best(action: Callable[[], object]) -> float:
    """Return the seconds of the fastest call, after one that warms up."""
    action()
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < ROUNDS or time.perf_counter() < end:
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def measure(num_threads: int) -> Peak:
    """Measure in this process, whose NumPy must have been started with ``num_threads`` threads."""
    a, b = (np.full((SIZE, SIZE), value, np.float32) for value in (0.5, 0.25))
    c = np.empty_like(a)
    flops = 2 * SIZE**3 / _best(lambda: np.matmul(a, b, out=c))
    sources, targets = (np.array_split(np.full(COPIED, 1, np.float32), num_threads) for _ in range(2))
    with ThreadPoolExecutor(num_threads) as pool:
        copied = 2 * 4 * COPIED / _best(lambda: list(pool.map(np.copyto, targets, sources)))
    return Peak(flops, copied, num_threads, HOW)


def measure_apart(num_threads: int) -> Peak:
    """Measure in another process.

    Raises:
        UserError: it failed; why.
    """
    command = [sys.executable, "-m", "runtime.roofline", str(num_threads)]
    environment = {**os.environ, **dict.fromkeys(THREADS, str(num_threads))}
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=True
        )
        value = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise UserError(f"--enable-profiling: this machine's peak can't be measured ({error})") from None
    return decode(Peak, value, "peak", "run it again")


if __name__ == "__main__":
    print(json.dumps(asdict(measure(int(sys.argv[1])))))
