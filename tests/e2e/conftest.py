import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from utils.config import ROOT


class Driver:
    """Runs build.py and inference.py in forks of a process that has imported all they need, see fault_driver.py."""

    def __init__(self) -> None:
        command = [sys.executable, Path(__file__).with_name("fault_driver.py")]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, script: str, *flags: object, roots: tuple[Path, ...] = (), **fault: object) -> dict:
        """Run a script with at most one fault; it must not end with a traceback, whatever happens."""
        job = {"script": script, "flags": [str(flag) for flag in flags], "roots": [str(root) for root in roots]}
        self.process.stdin.write(json.dumps(job | fault) + "\n")
        self.process.stdin.flush()
        done = json.loads(self.process.stdout.readline())
        assert "Traceback" not in done.get("stderr", ""), done["stderr"]
        return done


@pytest.fixture(scope="session")
def driver() -> Iterator[Driver]:
    made = Driver()
    yield made
    made.process.communicate(timeout=60)
