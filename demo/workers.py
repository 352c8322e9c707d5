"""Processes that share a batch: each takes a part of it and leaves its gradients in memory that all of them see.

Threads would wait for each other: two of them in one process got through a quarter less than two processes.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import multiprocessing, nn

LossOf = Callable[..., torch.Tensor]
Modules = dict[str, nn.Module]


def _parameters(modules: Modules) -> list[nn.Parameter]:
    return [p for module in modules.values() for p in module.parameters()]


def _compiled(modules: Modules) -> dict[str, Any]:
    return {name: torch.compile(module, dynamic=False) for name, module in modules.items()}


def _loss(loss_of: LossOf, modules: Modules, part: Sequence[torch.Tensor], share: float) -> float:
    """Add the gradients of a part's loss, which is ``share`` of the batch's, and return it."""
    loss = loss_of(modules, *part) * share
    loss.backward()
    return loss.item()


def _serve(
    connection: Connection, modules: Modules, gradients: list[torch.Tensor], loss_of: LossOf, compiled: bool
) -> None:
    """Work on parts of batches until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends the others
    torch.set_num_threads(1)
    for parameter, gradient in zip(_parameters(modules), gradients, strict=True):
        parameter.grad = gradient
    running = _compiled(modules) if compiled else modules
    while True:
        try:
            part, share = connection.recv()
        except EOFError:
            return
        for gradient in gradients:
            gradient.zero_()
        connection.send(_loss(loss_of, running, part, share))


class Workers:
    """This process and ``count`` - 1 others, all with the same weights.

    Args:
        modules: what is trained; the weights move to shared memory.
        loss_of: (modules, tensors of a part of the batch) -> mean loss over that part, a scalar. It can be pickled.
        compiled: compile the modules by torch.compile: the first step takes a minute, the others a quarter less.
    """

    def __init__(self, modules: Modules, count: int, loss_of: LossOf, compiled: bool = False) -> None:
        self._loss_of = loss_of
        self._parameters = _parameters(modules)
        self._running = _compiled(modules) if compiled else modules
        self._others: list[tuple[Connection, list[torch.Tensor], Any]] = []
        context = multiprocessing.get_context("spawn")
        for _ in range(count - 1):
            for module in modules.values():
                module.share_memory()
            gradients = [torch.zeros_like(p).share_memory_() for p in self._parameters]
            mine, theirs = context.Pipe()
            arguments = (theirs, modules, gradients, loss_of, compiled)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._others.append((mine, gradients, process))

    def backward(self, batch: Sequence[torch.Tensor]) -> float:
        """Leave the gradients of the mean loss over ``batch`` in the modules and return that loss."""
        whole = len(batch[0])
        first, *others = zip(*(tensor.tensor_split(len(self._others) + 1) for tensor in batch), strict=True)
        for (connection, _, _), part in zip(self._others, others, strict=True):
            connection.send((part, len(part[0]) / whole))
        total = _loss(self._loss_of, self._running, first, len(first[0]) / whole)
        for connection, gradients, _ in self._others:
            total += connection.recv()
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                if parameter.grad is not None:
                    parameter.grad.add_(gradient)
        return total

    def close(self) -> None:
        """End the other processes."""
        for connection, _, process in self._others:
            connection.close()
            process.join()


@contextmanager
def workers(modules: Modules, count: int, loss_of: LossOf, compiled: bool = False) -> Iterator[Workers]:
    """Give ``Workers`` whose processes end with the block."""
    team = Workers(modules, count, loss_of, compiled)
    try:
        yield team
    finally:
        team.close()
