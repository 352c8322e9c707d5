"""Tuning over a tracker and two servers of TVM's RPC on this machine."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from small_component import CPU
from test_records import KEY, TASKS, folder_of

from compiler.tuning import remote
from compiler.tuning.records import FAILED, Writer, kind_of, read
from compiler.tuning.remote import RemoteWorkshop, servers
from compiler.tuning.search import tune
from compiler.tuning.tasks import Task
from utils.errors import UserError

NAME = kind_of(CPU).name
TILES = CPU.machine.unit == "amx"
WAIT_SECONDS = 60


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Farm:
    """A tracker and servers, each in a process group of its own."""

    def __init__(self):
        self.port, self.processes = free_port(), []
        self.address = f"127.0.0.1:{self.port}"
        self.start("rpc_tracker", "--host", "127.0.0.1", "--port", self.port, "--port-end", self.port + 1)

    def start(self, module, *flags):
        command = [sys.executable, "-m", f"tvm.exec.{module}", *map(str, flags)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.processes.append(subprocess.Popen(command, start_new_session=True, **quiet))

    def serve(self, count):
        for _ in range(count):
            port = free_port()
            flags = ("--host", "127.0.0.1", "--port", port, "--port-end", port + 1)
            self.start("rpc_server", *flags, "--tracker", self.address, "--key", NAME)
        end = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < end:
            try:
                if servers(self.address, NAME) == count:
                    return
            except UserError:
                pass
            time.sleep(0.3)
        raise AssertionError("the servers did not come up")

    def kill(self, process):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def farm():
    farm = Farm()
    yield farm
    for process in farm.processes:
        if process.poll() is None:
            farm.kill(process)


def test_one_server_is_killed_on_the_way(farm, tmp_path):
    farm.serve(2)
    writer = Writer(tmp_path, CPU)
    tasks = [Task(key, plain, 1) for key, plain in TASKS]
    with RemoteWorkshop(CPU.target, 1, farm.address, NAME, TILES) as workshop:
        assert workshop.runners == 2
        tune(tasks, writer, workshop, 0, 4)
        farm.kill(farm.processes[1])
        tune(tasks, writer, workshop, 0, 8)
    records = read(folder_of(tmp_path))
    assert len(records) == 12 and records.best(KEY)[1] < 1
    assert all(seconds < FAILED for tried in records.seconds.values() for times in tried.values() for seconds in times)


def test_no_tracker_no_server_and_no_address(farm, monkeypatch):
    with pytest.raises(UserError, match="no server of none"):
        for _ in range(100):
            time.sleep(0.2)
            try:
                servers(farm.address, "none")
            except UserError as error:
                if "no tracker answers" not in str(error):
                    raise
    monkeypatch.setattr(remote, "ANSWER_SECONDS", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # it takes the connection, and never says anything
        with pytest.raises(UserError, match=r"--tracker .* no tracker answers"):
            servers(f"127.0.0.1:{silent.getsockname()[1]}", NAME)
    for text in ("nowhere", "host:", ":1", "host:99999", "host:x"):
        with pytest.raises(UserError, match="HOST:PORT"):
            servers(text, NAME)
