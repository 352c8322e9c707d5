"""The loop that both stages of training share: learning rate, mean weights, and a state that survives a kill."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from demo.saving import replacing
from demo.workers import LossOf, Workers, workers
from utils.errors import UserError
from utils.units import seconds

REPORT_EVERY = 50  # steps
REPORT_SECONDS = 60.0


@dataclass(frozen=True)
class Budget:
    """When to stop: after ``minutes`` of this stage in all, or after ``steps``, whichever comes first."""

    minutes: float
    steps: int | None = None

    def spent(self, step: int, elapsed: float) -> float:
        """Return the share (0 to 1) that is used up after ``step`` steps and ``elapsed`` seconds."""
        if self.steps is not None:
            return step / self.steps
        return elapsed / (60 * self.minutes)


@dataclass(frozen=True)
class Schedule:
    """Learning rate: linear over the share ``warmup`` of the budget, then a cosine down to ``floor`` of ``peak``."""

    peak: float
    warmup: float = 0.02
    floor: float = 0.02

    def rate(self, spent: float) -> float:
        """Return the learning rate when the share ``spent`` (0 to 1) of the budget is used."""
        cosine = self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, spent)))
        return self.peak * cosine * min(1.0, spent / self.warmup)


class State:
    """Everything that a stage needs to go on: weights, their running mean, the optimiser, and the losses so far.

    The running mean is exponential, of decay min(``decay``, (1 + step) / (10 + step)), so that the random start is
    soon forgotten. ``origin`` names what the training began with; a state of another one is not gone on from.
    """

    def __init__(self, modules: dict[str, nn.Module], decay: float = 0.999, origin: str = ""):
        self.modules, self._decay, self.origin = modules, decay, origin
        self.parameters = {f"{n}.{k}": p for n, m in modules.items() for k, p in m.named_parameters()}
        self.mean = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.optimiser = torch.optim.AdamW(
            self.parameters.values(), lr=0.0, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.step, self.elapsed, self.losses = 0, 0.0, []

    def update(self, rate: float) -> None:
        """Make one optimiser step with the gradients at hand, of norm 1 at most, and take it into the mean."""
        nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        share = 1 - min(self._decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.mean.values()), list(self.parameters.values()), share)
        self.step += 1

    def swap(self) -> None:
        """Exchange weights and their running mean. Call it again to exchange them back."""
        for name, parameter in self.parameters.items():
            parameter.data, self.mean[name] = self.mean[name], parameter.data

    def save(self, path: Path) -> None:
        """Write the state to ``path`` (safetensors).

        An interruption leaves the file before it intact, and so does a full disk, which is a UserError.
        """
        tensors = {f"weight/{n}": p.detach() for n, p in self.parameters.items()}
        tensors |= {f"mean/{n}": p for n, p in self.mean.items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"adam/{key}/{name}"] = value
        tensors = {name: value.contiguous() for name, value in tensors.items()}
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float32)
        progress = {"step": self.step, "elapsed": self.elapsed, "origin": self.origin}
        with replacing(path) as temporary:
            save_file(tensors, temporary, {"progress": json.dumps(progress)})

    def load(self, path: Path) -> None:
        """Go on from what ``save`` wrote.

        Raises:
            UserError: the file is damaged, of another architecture, or of a training that began with something else.
        """
        try:
            with safe_open(path, "pt") as file:
                progress = json.loads(file.metadata()["progress"])
                if progress.get("origin", "") != self.origin:
                    raise UserError(f"{path}: the state of another training; leave --resume out to start anew")
                for name, parameter in self.parameters.items():
                    parameter.data.copy_(file.get_tensor(f"weight/{name}"))
                    self.mean[name].copy_(file.get_tensor(f"mean/{name}"))
                    if progress["step"] > 0:
                        keys = ("step", "exp_avg", "exp_avg_sq")
                        self.optimiser.state[parameter] = {k: file.get_tensor(f"adam/{k}/{name}") for k in keys}
                self.losses = file.get_tensor("losses").tolist()
        except (SafetensorError, RuntimeError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a training state of this architecture ({error}); remove it") from error
        self.step, self.elapsed = progress["step"], progress["elapsed"]


def fit(
    state: State,
    batch_of: Callable[[int, float], Sequence[torch.Tensor]],
    loss_of: LossOf,
    schedule: Schedule,
    budget: Budget,
    checkpoint: Callable[[State], None],
    processes: int = 1,
    every_minutes: float = 4.0,
    compiled: bool = False,
) -> None:
    """Train until the budget is spent, calling ``checkpoint`` every few minutes and at the end.

    Args:
        batch_of: (step, share of the budget spent) -> tensors of one batch, noise included. What is drawn depends on
            the step alone, so that a run that was killed and resumed goes the same way.
        loss_of: (modules, tensors of a part of the batch) -> mean loss over that part, a scalar.
        processes: how many share a batch.
        compiled: compile the networks first, see ``Workers``.

    Raises:
        UserError: the loss is no finite number any more.
    """
    with one_thread_an_operator(), workers(state.modules, processes, loss_of, compiled) as team:
        _loop(state, team, batch_of, schedule, budget, checkpoint, every_minutes)


@contextmanager
def one_thread_an_operator() -> Iterator[None]:
    """Leave the cores to the threads that share a batch."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _loop(
    state: State,
    team: Workers,
    batch_of: Callable[[int, float], Sequence[torch.Tensor]],
    schedule: Schedule,
    budget: Budget,
    checkpoint: Callable[[State], None],
    every_minutes: float,
) -> None:
    start = saved = reported = time.monotonic()
    before = state.elapsed
    while (spent := budget.spent(state.step, state.elapsed)) < 1:
        state.losses.append(team.backward(batch_of(state.step, spent)))
        if not math.isfinite(state.losses[-1]):
            raise UserError(f"the loss of step {state.step} is {state.losses[-1]}; lower --learning-rate")
        state.update(schedule.rate(spent))
        now = time.monotonic()
        state.elapsed = before + now - start
        if state.step % REPORT_EVERY == 0 or now - reported > REPORT_SECONDS:
            _report(state, budget)
            reported = now
        if now - saved > 60 * every_minutes:
            checkpoint(state)
            saved = time.monotonic()
    checkpoint(state)


def _report(state: State, budget: Budget) -> None:
    recent = state.losses[-REPORT_EVERY:]
    spent = budget.spent(state.step, state.elapsed)
    left = state.elapsed / spent - state.elapsed if spent > 0 else 0.0
    line = f"step {state.step}  loss {sum(recent) / len(recent):.4f}  {seconds(state.elapsed / state.step)} a step"
    print(f"{line}  {100 * spent:.0f} %  {seconds(max(0.0, left))} left", file=sys.stderr, flush=True)
