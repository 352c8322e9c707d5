"""Runs build.py and inference.py again and again in forks of one process, which has torch and tvm already, with faults.

Reads a job a line from stdin and answers each with a line, both JSON. A job: ``script``, ``flags``, and at most one
fault: ``at`` a number of a file operation, with ``fault`` "kill", "term", "int" or "full" (no room, from there on), or
``after`` seconds, then SIGKILL to the script and all that it has started. Operations on files count that Python makes
below ``roots``. The answer: ``code`` (negative: the signal), ``stdout``, ``stderr``, ``operations``, ``seconds``.
"""

import errno
import importlib
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.allocator import HUGE_PAGES
from utils.errors import run_script

SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}
MAKING = ("open", "os.mkdir", "os.link")  # these take room on the disk
CHANGING = (*MAKING, "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.truncate")


def _is_counted(event: str, arguments: tuple, roots: tuple[str, ...]) -> bool:
    if event not in CHANGING or not isinstance(arguments[0], str | bytes | os.PathLike):
        return False
    if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        return False
    return os.path.abspath(os.fsdecode(arguments[0])).startswith(roots)


def _inject(job: dict, counter: Path) -> None:
    """Count file operations, leave their number in ``counter``, and make one of them go wrong."""
    count, roots, busy = 0, tuple(job["roots"]), False
    stream = os.open(counter, os.O_WRONLY | os.O_CREAT)

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count, busy
        if busy or not _is_counted(event, arguments, roots):
            return
        count += 1
        busy = True  # what follows must not count itself
        os.pwrite(stream, f"{count:8}".encode(), 0)
        wanted, at = job.get("fault"), job.get("at", 0)
        if wanted in SIGNALS and count == at:
            os.kill(os.getpid(), SIGNALS[wanted])
        busy = False
        if wanted == "full" and count >= at and event in MAKING:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fsdecode(arguments[0]))

    sys.addaudithook(hook)


def _child(job: dict, folder: Path) -> None:
    for name, number in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = [job["script"] + ".py", *job["flags"]]
    script = importlib.import_module(job["script"])
    _inject(job, folder / "operations")
    run_script(script.main)


def _run(job: dict) -> dict:
    with tempfile.TemporaryDirectory() as name:
        folder, start = Path(name), time.monotonic()
        pid = os.fork()
        os.setpgid(pid, pid or os.getpid())
        if pid == 0:
            code = 1
            try:
                _child(job, folder)
                code = 0
            except SystemExit as end:
                code = end.code
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(_flushed(code))
        if "after" in job:
            time.sleep(job["after"])
            os.killpg(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        said = {name: (folder / name).read_text() for name in ("stdout", "stderr") if (folder / name).exists()}
        counted = folder / "operations"
        operations = int(counted.read_text() or 0) if counted.exists() else 0
        seconds = time.monotonic() - start
        return {"code": os.waitstatus_to_exitcode(status), **said, "operations": operations, "seconds": seconds}


def _flushed(code: int) -> int:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return code


def main() -> None:
    """Answer jobs until stdin ends."""
    os.environ.update(HUGE_PAGES)  # or inference.py would start itself anew
    import compiler.builder  # noqa: F401 - all that a build imports, once
    import runtime.run  # noqa: F401

    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
