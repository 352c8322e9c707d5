"""--tracker HOST:PORT: candidates are timed on the machines that serve a tracker of TVM's RPC.

TVM's servers run whatever they are sent: keep tracker and servers on loopback or on a network of your own.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import tvm
from tvm import rpc

from compiler.kernels.tir import argument, prim_func
from compiler.tuning.measure import RUN_SECONDS, Argument, Timed, Workshop, timed
from compiler.tuning.records import Chosen, Key
from utils.cpu import ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
from utils.errors import UserError

ANSWER_SECONDS = 10
TRIES = 3  # on as many servers, where one is lost on the way


def parse_address(text: str) -> tuple[str, int]:
    """Split HOST:PORT.

    Raises:
        UserError: it is none.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"--tracker {text}: give it as HOST:PORT, such as 127.0.0.1:9190")
    return host, int(port)


def _summary(host: str, port: int) -> dict[str, Any]:
    """Ask a tracker what it has; TVM's own client would wait for ever."""
    from tvm.rpc import base

    with socket.create_connection((host, port), ANSWER_SECONDS) as connection:
        connection.settimeout(ANSWER_SECONDS)
        connection.sendall(base.struct.pack("<i", base.RPC_TRACKER_MAGIC))
        if base.struct.unpack("<i", base.recvall(connection, 4))[0] != base.RPC_TRACKER_MAGIC:
            raise OSError("it is no tracker")
        base.sendjson(connection, [base.TrackerCode.SUMMARY])
        status, found = base.recvjson(connection)
    if status != base.TrackerCode.SUCCESS:
        raise OSError("it is no tracker")
    return found


def servers(address: str, key: str) -> int:
    """Return how many servers of a key a tracker has.

    Raises:
        UserError: it does not answer, or has none.
    """
    host, port = parse_address(address)
    try:
        found = [str(server["key"]).removeprefix("server:") for server in _summary(host, port)["server_info"]]
    except (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise UserError(f"--tracker {address}: no tracker answers there within {ANSWER_SECONDS} s ({error})") from None
    if key not in found:
        others = f"; it has {', '.join(sorted(set(found)))}" if found else ""
        raise UserError(f"--tracker {address}: no server of {key} is there{others}; start one with --key {key}")
    return found.count(key)


def permit() -> tvm.tirx.PrimFunc:
    """Return a function that asks the system for the tile registers in the process that calls it."""
    import tvm.tirx.script.builder.ir as T

    def body() -> None:
        answer = argument("answer", (1,), "int64")
        call = T.call_extern(
            "int64", "syscall", *(T.int64(v) for v in (ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA))
        )
        T.buffer_store(answer, call, [0])

    return prim_func(body)


def run_there(
    host: str, port: int, key: str, path: Path, permits: Path | None, arguments: list[Argument], threads: int
) -> list[float]:
    """Time a candidate on a server of the tracker; runs in a worker.

    Raises:
        RuntimeError: the candidate failed, or server after server was lost.
    """
    for attempt in range(1, TRIES + 1):
        try:
            session = rpc.connect_tracker(host, port).request(key, session_timeout=RUN_SECONDS)
            return _run_in(session, path, permits, arguments, threads)
        except (tvm.error.RPCError, OSError):  # the server is gone, or the candidate ended its process
            if attempt == TRIES:
                raise
    raise AssertionError


def _run_in(
    session: rpc.RPCSession, path: Path, permits: Path | None, arguments: list[Argument], threads: int
) -> list[float]:
    session.get_function("runtime.config_threadpool")(1, threads)
    device = session.cpu()
    for library in (path, permits) if permits is not None else (path,):
        session.upload(str(library))
    if permits is not None:
        session.load_module(permits.name)["main"](tvm.runtime.empty((1,), "int64", device))
    return timed(session.load_module(path.name), device, arguments)


class RemoteWorkshop(Workshop):
    """Builds here, times on the servers of a tracker, all at once; a candidate whose server is lost gets another."""

    def __init__(self, target: tvm.target.Target, threads: int, address: str, key: str, tiles: bool) -> None:
        self.address, self.key = address, key
        super().__init__(target, threads, servers(address, key), TRIES * RUN_SECONDS)
        self.permits = self.folder / "permit.so" if tiles else None
        if self.permits is not None:
            module = tvm.IRModule({"main": permit().with_attr("global_symbol", "main")})
            tvm.compile(module, target=target).export_library(str(self.permits))

    def start(self, path: Path, arguments: list[Argument]) -> Future[list[float]]:
        """Have a candidate timed by the next server that is free."""
        job = (*parse_address(self.address), self.key, path, self.permits, arguments, self.threads)
        return self.runner.submit(run_there, *job)

    def candidates(self, key: Key, many: Sequence[Chosen]) -> Iterator[Timed]:
        """Build and time choices of a kernel, see ``Workshop``.

        Raises:
            UserError: no server is left; what was being timed has not failed.
        """
        for chosen, result in super().candidates(key, many):
            if isinstance(result, str):
                servers(self.address, self.key)
            yield chosen, result
