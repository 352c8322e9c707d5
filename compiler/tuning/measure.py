"""Builds and times candidates in processes of their own: one that crashes, hangs or gives NaN has failed, no more."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tvm
from tvm.s_tir.meta_schedule.arg_info import ArgInfo
from tvm.support.popen_pool import MapResult, PopenPoolExecutor, StatusKind

from compiler.kernels.tunable import decode, make
from compiler.tuning.records import Chosen, Key
from runtime.engine import set_num_threads
from utils.config import ROOT
from utils.cpu import available_cores, permit_tiles

BUILD_SECONDS, RUN_SECONDS = 60, 20  # after which a candidate counts as hanging
REPEATS, MOST_REPEATS, LEAST_SECONDS = 5, 50, 0.02  # runs of a candidate, more of a short one

Argument = tuple[str, tuple[int, ...]]  # dtype and shape
Timed = tuple[Chosen, list[float] | str]  # seconds, or in one line why there are none


def build(key: Key, chosen: Chosen, target: tvm.target.Target, path: Path) -> list[Argument]:
    """Compile a candidate into the library ``path`` and return what it takes; runs in a worker."""
    function = make(key[0], decode(key[1]), chosen)
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    tvm.compile(module, target=target).export_library(str(path))
    infos = (info.as_json() for info in ArgInfo.from_prim_func(function))
    return [(str(dtype), tuple(int(extent) for extent in shape)) for _, dtype, shape in infos]


def random_array(dtype: str, shape: Sequence[int], random: np.random.Generator) -> np.ndarray:
    """Return normal numbers; 32-bit words are pairs of bfloat16."""
    if dtype == "uint32":
        halves = random.standard_normal((*shape, 2), np.float32).view(np.uint32) >> np.uint32(16)
        return halves[..., 0] | halves[..., 1] << np.uint32(16)
    return random.standard_normal(shape, np.float32)


def timed(library: tvm.runtime.Module, device: tvm.runtime.Device, arguments: list[Argument]) -> list[float]:
    """Return seconds of several runs, each with cold caches, as between the other kernels of a model.

    Raises:
        ValueError: a result is NaN or infinite.
    """
    random = np.random.default_rng(0)
    tensors = [tvm.runtime.tensor(random_array(dtype, shape, random), device) for dtype, shape in arguments]
    library["main"](*tensors)
    numbers = (t.numpy() for t, (dtype, _) in zip(tensors, arguments, strict=True) if dtype == "float32")
    if not all(np.isfinite(values).all() for values in numbers):
        raise ValueError("the result is not finite")
    flush = {"f_preproc": "cache_flush_cpu_non_first_arg"}
    once = library.time_evaluator("main", device, number=1, repeat=2, **flush)(*tensors).results[-1]
    repeat = min(MOST_REPEATS, max(REPEATS, round(LEAST_SECONDS / once)))
    return list(library.time_evaluator("main", device, number=1, repeat=repeat, **flush)(*tensors).results)


def run(path: Path, arguments: list[Argument], threads: int) -> list[float]:
    """Time the candidate in ``path``, see ``timed``; runs in a worker."""
    permit_tiles()
    set_num_threads(threads)
    return timed(tvm.runtime.load_module(str(path)), tvm.cpu(), arguments)


@contextmanager
def _importable() -> Iterator[None]:
    """Have processes that start meanwhile import the project, wherever they are started."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT) if not before else f"{ROOT}{os.pathsep}{before}"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


class Workshop:
    """Processes that build, all cores at once, and one that times, with nothing beside it."""

    def __init__(self, target: tvm.target.Target, threads: int, runners: int = 1, seconds: float = RUN_SECONDS) -> None:
        self.target, self.threads, self.runners = target, threads, runners
        self.folder = Path(tempfile.mkdtemp(prefix="tvmerge-tuning-"))
        self.builders = PopenPoolExecutor(max_workers=available_cores(), timeout=BUILD_SECONDS)
        self.runner = PopenPoolExecutor(max_workers=runners, timeout=seconds)
        self.count = 0

    def __enter__(self) -> Workshop:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.builders.shutdown(wait=False)
        self.runner.shutdown(wait=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def candidates(self, key: Key, many: Sequence[Chosen]) -> Iterator[Timed]:
        """Build choices of a kernel, then yield the seconds of each, or in one line why it failed."""
        paths = [self.folder / f"{self.count + index}.so" for index in range(len(many))]
        self.count += len(many)
        jobs = [(key, chosen, self.target, path) for chosen, path in zip(many, paths, strict=True)]
        with _importable():
            built = list(self.builders.map_with_error_catching(_build_job, jobs))
            yield from self._times(many, paths, built)

    def _times(self, many: Sequence[Chosen], paths: list[Path], built: list[MapResult]) -> Iterator[Timed]:
        """Yield what candidates take, as many at once as there are runners."""
        started: list[Future[list[float]]] = []
        good = [(path, result.value) for path, result in zip(paths, built, strict=True) if _is_built(result)]
        for chosen, path, result in zip(many, paths, built, strict=True):
            if not _is_built(result):
                yield chosen, reason(result.value, "building")
                continue
            while good and len(started) < self.runners:
                started.append(self.start(*good.pop(0)))
            try:
                yield chosen, started.pop(0).result()
            except Exception as error:
                yield chosen, reason(error, "running")
            path.unlink(missing_ok=True)

    def start(self, path: Path, arguments: list[Argument]) -> Future[list[float]]:
        """Have a candidate timed, after those that were given before."""
        return self.runner.submit(run, path, arguments, self.threads)


def _is_built(result: MapResult) -> bool:
    return result.status == StatusKind.COMPLETE


def _build_job(job: tuple[Key, Chosen, tvm.target.Target, Path]) -> list[Argument]:
    return build(*job)


def reason(error: object, what: str) -> str:
    if isinstance(error, TimeoutError):
        return f"{what} took too long"
    return f"{what}: {type(error).__name__}: {' '.join(str(error).split())[-200:]}"
