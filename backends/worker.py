"""The process of one peer. It is told by lines on its stdin, and answers each with one line of JSON on its stdout.

The first line is a job: ``{"task", "peer", "components", "settings"}``. The task ``reference`` stores inputs and
references, ``convert`` what a peer keeps on disk; both end then. ``serve`` prepares one component and calls it once for
each line ``run``, so that whoever asks decides whose turn it is; ``draw`` prepares a whole pipeline and draws a picture
for each line ``{"steps"}``. What libraries print goes to stderr.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from PIL import Image

from backends.peer import PICTURE, SEED, Peer, Settings, load
from models.source import check_model
from runtime.quality import finite, psnr
from utils.errors import UserError

OUTPUT, DRAWN = "output.npy", "picture.png"
SAMPLE_SECONDS = 0.2  # a call that is shorter is repeated for so long

Answer = dict[str, Any]


def reference(settings: Settings, components: list[str]) -> Answer:
    """Make inputs and references. What can be refused without torch is refused before it is imported."""
    check_model(settings.model)
    from backends.reference import make_references

    return {"settings": make_references(settings, components).to_json()}


def convert(peer: Peer, components: list[str]) -> Answer:
    """Put on disk what the peer prepares once."""
    peer.convert(components)
    return {}


def sample(call: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Return seconds of a call and its result. Of a short one, the median of several.

    One call goes before and is not counted: while others had their turns, the system may have taken this process's
    pages out of memory, and reading them again is no part of a call.
    """
    result = call()
    seconds: list[float] = []
    end = time.perf_counter() + SAMPLE_SECONDS
    while not seconds or time.perf_counter() < end:
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), result


class Server:
    """A peer with one component prepared."""

    def __init__(self, peer: Peer, component: str) -> None:
        self.peer, self.name = peer, f"{peer.name} {component}"
        self.prepare_seconds = peer.prepare(component)
        self.inputs, self.expected = peer.settings.inputs(component), peer.settings.reference(component)
        self.folder = peer.settings.output_folder(component, peer.name)
        self.folder.mkdir(parents=True, exist_ok=True)

    def run(self) -> Answer:
        """Call the component and keep what it returns.

        Raises:
            UserError: that is no result: NaN, Inf or another shape.
        """
        seconds, output = sample(lambda: self.peer.run(self.inputs))
        quality = psnr(self.expected, output)
        if quality == -math.inf:
            raise UserError(f"{self.name}: the output has NaN or Inf, or not the shape of the reference")
        np.save(self.folder / OUTPUT, output)
        return {"seconds": seconds, "psnr": finite(quality), "peak_memory": self.peer.peak_memory()}


class Painter:
    """A peer with all that draws a picture prepared."""

    def __init__(self, peer: Peer) -> None:
        self.peer, self.settings = peer, peer.settings
        self.prepare_seconds = peer.prepare(PICTURE)
        self.folder = self.settings.output_folder(PICTURE, peer.name)
        self.folder.mkdir(parents=True, exist_ok=True)

    def draw(self, steps: int, warm: bool) -> Answer:
        """Draw pictures; ``warm`` draws with a single step before, uncounted, for the reason that ``sample`` has.

        Raises:
            UserError: it can't be drawn, or is not of the reference's shape.
        """
        if warm:
            self.peer.draw(SEED, 1)
        start = time.perf_counter()
        made = self.peer.draw(SEED, steps)
        total = time.perf_counter() - start
        parts = {"text_seconds": made.text_seconds, "unet_seconds": made.unet_seconds, "vae_seconds": made.vae_seconds}
        answer = {"total_seconds": total, **parts, "peak_memory": self.peer.peak_memory()}
        if steps != self.settings.steps:
            return answer
        quality = psnr(self.settings.reference(PICTURE), made.pictures)
        if quality == -math.inf:
            raise UserError(f"{self.peer.name}: the pictures have not the shape of the reference")
        picture = self.folder / DRAWN
        Image.fromarray(made.pictures[0]).save(picture)
        return {**answer, "psnr": finite(quality), "picture": str(picture)}


def answers(lines: Iterable[str]) -> Iterable[Answer]:
    """Do the job of the first line and yield the answer to it and to each line after.

    Raises:
        UserError: it can't be done; the reason.
    """
    lines = iter(lines)
    job = json.loads(next(lines))
    settings = Settings.from_json(job["settings"])
    if job["task"] == "reference":
        yield reference(settings, job["components"])
        return
    peer = load(job["peer"], settings)
    if reason := peer.unavailable():
        raise UserError(reason)
    if job["task"] == "convert":
        yield convert(peer, job["components"])
        return
    if job["task"] == "draw":
        painter = Painter(peer)
        yield {"prepare_seconds": painter.prepare_seconds, "size": peer.size()}
        for line in lines:
            yield painter.draw(**json.loads(line))
        return
    (component,) = job["components"]
    server = Server(peer, component)
    yield {"prepare_seconds": server.prepare_seconds}
    for _ in lines:
        yield server.run()


def main() -> None:
    """Answer on stdout, until stdin ends. A failure is an answer too: ``{"error"}``, whose traceback is on stderr."""
    with os.fdopen(os.dup(1), "w") as stream:
        os.dup2(2, 1)  # from now on, what is printed is no answer
        try:
            for answer in answers(sys.stdin):
                print(json.dumps(answer, allow_nan=False), file=stream, flush=True)
        except Exception as error:
            traceback.print_exc()
            text = " ".join(str(error).split()) or type(error).__name__
            name = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            print(json.dumps({"error": (name + text)[:400]}), file=stream, flush=True)


if __name__ == "__main__":
    main()
