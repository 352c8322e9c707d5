"""Bipartite soft matching in tiles of words: float32 split into bfloat16 parts on the way to the multiply.

The algorithm is that of token_matching.py. The words of all destinations, scaled to length 1, are made once; a task is
32 sources, which meet 32 destinations at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm.tirx.script.builder.ir as T
from tvm import tirx

from compiler.kernels.register_tile import Machine
from compiler.kernels.shuffle import load_row, transpose
from compiler.kernels.split import BLOCK, WORDS, split
from compiler.kernels.tir import Value, local, prim_func, scratch, tiles
from compiler.kernels.token_matching import Matching, MatchShape
from compiler.kernels.unit import TILE, Product, Words
from compiler.kernels.units import unit


class _TileMatching(Matching):
    def __init__(self, shape: MatchShape, machine: Machine) -> None:
        super().__init__(shape, machine)
        self.unit, self.parts = unit(machine), machine.parts
        self.steps = -(-shape.channels // BLOCK)  # of the product
        self.tiles = -(-shape.destinations // TILE)

    def prepare(self) -> None:
        """Make the words of the destinations; beyond the last one it is repeated."""
        s = self.shape
        self.words = [scratch((s.batch, self.tiles, self.steps, TILE, WORDS)) for _ in range(self.parts)]
        with T.parallel(s.batch * self.tiles) as task:
            n, tile = task // self.tiles, task % self.tiles
            with T.serial(TILE) as j:
                token = T.bind(s.destination(T.min(tile * TILE + j, s.destinations - 1)))
                scale = self.v.all(self.inverse[n, token])

                def store(start: Value, count: int) -> None:
                    words = self._split(n, token, start, count, scale)
                    self._store(self.words, words, n, tile, start // BLOCK, j, 0)

                tiles(s.channels, BLOCK, store)

    def _split(self, n: Value, token: Value, start: Value, count: int, scale: Value) -> list[Value]:
        """Return the words of up to 32 numbers of a token."""
        halves = [
            load_row(self.x, [n, token, start + half], min(WORDS, count - half)) if half < count else self.v.all(0.0)
            for half in (0, WORDS)
        ]
        first, second = (T.bind(half * scale) for half in halves)
        return split(first, second, self.parts)

    def _store(self, buffers: Sequence[Value], words: Sequence[Value], *index: Value) -> None:
        for buffer, value in zip(buffers, words, strict=True):
            self.v.store(buffer, value, *index)

    def search(self, n: Value, block: Value) -> None:
        """Find the best destination of each of 32 sources."""
        sources = [scratch((self.steps, 2, WORDS, WORDS)) for _ in range(self.parts)]
        self.now, scores = local(2, self.width), local(TILE, self.width)
        self.unit.configure()

        def turn(start: Value, count: int) -> None:
            with T.serial(2) as side:
                with T.serial(WORDS) as lane:
                    token = T.bind(self.source_token(block, side * WORDS + lane))
                    words = self._split(n, token, start, count, self.v.all(1.0))
                    self._store(sources, words, start // BLOCK, side, lane, 0)
                for part in sources:
                    transpose(part, [start // BLOCK, side, 0, 0])

        tiles(self.shape.channels, BLOCK, turn)
        self.start()
        with T.serial(self.tiles) as tile:
            left = Words(self.words, lambda step, _part: [n, tile, step, 0])
            self.unit.accumulate(
                Product(2, scores, 0, True, self.steps, left, Words(sources, lambda step, _part: [step]))
            )
            with T.serial(TILE) as j:
                for c in self.columns:
                    self.compare(self.v.load(scores, j, c), tile * TILE + j, c)
        self.finish(n, block)
        self.unit.release()


def tile_matching(shape: MatchShape, machine: Machine) -> tirx.PrimFunc:
    """Return the matching as a function of float32 tokens [B, N, C] and int32 slots [B, N]."""
    return prim_func(_TileMatching(shape, machine).body)
