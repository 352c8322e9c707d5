"""The simple rule that schedules whatever has no kernel of ours: parallel outer, vectorised inner, tiled reduction."""

from __future__ import annotations

import math

import tvm
import tvm_ffi
from tvm import s_tir, tirx

ROW_TILE = 8  # rows of a register tile: 8 x 2 vectors are 16 accumulators and leave registers for the operands
VECTORS = 2  # vectors of a register tile's row
TASKS_PER_CORE = 4  # parallel pieces per core, so that cores finish together


def largest_divisor(extent: int, limit: int) -> int:
    """Return the largest divisor of ``extent`` that is at most ``limit``."""
    return max(d for d in range(1, min(extent, limit) + 1) if extent % d == 0)


def _loop_extents(sch: s_tir.Schedule, loops: list) -> list[int]:
    return [int(sch.get(loop).extent) for loop in loops]


def _is_reduction(block: s_tir.SBlock) -> bool:
    return any(v.iter_type == tirx.IterVar.CommReduce for v in block.iter_vars)


def _reads_along(block: s_tir.SBlock, var: tirx.Var) -> bool:
    """Tell whether some input of the block is contiguous along ``var``: its last index is ``var`` itself."""
    written = [region.source for region in block.writes]
    loads: list[tvm.ir.TensorLoad] = []
    tvm_ffi.structural_walk(block.body, (tvm.ir.TensorLoad, loads.append))
    return any(
        load.indices and load.indices[-1].same_as(var) and not any(load.source.same_as(b) for b in written)
        for load in loads
    )


class SimpleRule:
    """Schedules a TensorIR function of any shape.

    Injective producers are inlined where nobody reduces over them. A reduction gets a register tile of rows x vectors
    when an operand is contiguous along its last spatial axis (matrix multiply, NHWC convolution); otherwise its rows
    run in parallel. Everything else is split over the cores and vectorised along its last axis.
    """

    def __init__(self, lanes: int, cores: int) -> None:
        self.lanes = lanes
        self.cores = cores

    def schedule(self, function: tirx.PrimFunc) -> tirx.PrimFunc:
        """Return the scheduled function, with the same meaning and signature."""
        sch = s_tir.Schedule(function)
        root = sch.get_sblock("root") if self._has_root(sch) else None
        if root is None:
            return function
        self._inline(sch, root)
        for block in sch.get_child_blocks(root):
            if _is_reduction(sch.get(block)):
                self._reduction(sch, block)
            else:
                self._spatial(sch, block)
        return sch.mod["main"].with_attr("tirx.is_scheduled", True)

    @staticmethod
    def _has_root(sch: s_tir.Schedule) -> bool:
        return isinstance(sch.mod["main"].body, s_tir.SBlockRealize)

    def _inline(self, sch: s_tir.Schedule, root: object) -> None:
        """Inline each injective block whose readers are all injective too."""
        for block in sch.get_child_blocks(root):
            if _is_reduction(sch.get(block)):
                continue
            consumers = sch.get_consumers(block)
            if not consumers or any(_is_reduction(sch.get(c)) for c in consumers):
                continue
            try:
                sch.compute_inline(block)
            except s_tir.ScheduleError:
                continue  # an output of the function, or an opaque block: it keeps loops of its own

    def _spatial(self, sch: s_tir.Schedule, block: object) -> None:
        loops = sch.get_loops(block)
        if not loops:
            return
        *outer, inner = loops
        extent = int(sch.get(inner).extent)
        width = largest_divisor(extent, self.lanes)
        rest, vector = sch.split(inner, [None, width])
        sch.vectorize(vector)
        sch.parallel(self._outer(sch, [*outer, rest]))

    def _outer(self, sch: s_tir.Schedule, loops: list) -> object:
        """Fuse just enough outer loops to give each core several pieces."""
        count, pieces = 0, 1
        for extent in _loop_extents(sch, loops):
            count, pieces = count + 1, pieces * extent
            if pieces >= self.cores * TASKS_PER_CORE:
                break
        return sch.fuse(*loops[:count]) if count > 1 else loops[0]

    def _reduction(self, sch: s_tir.Schedule, block: object) -> None:
        node = sch.get(block)
        loops = sch.get_loops(block)
        kinds = [v.iter_type for v in node.iter_vars]
        if len(loops) != len(kinds) or tirx.IterVar.DataPar not in kinds:
            return
        spatial, reduce = (
            [loop for loop, kind in zip(loops, kinds, strict=True) if kind == wanted]
            for wanted in (tirx.IterVar.DataPar, tirx.IterVar.CommReduce)
        )
        last = next(v.var for v in reversed(node.iter_vars) if v.iter_type == tirx.IterVar.DataPar)
        if _reads_along(node, last):
            self._tile(sch, block, spatial, reduce)
        else:
            sch.reorder(*spatial, *reduce)
            sch.parallel(self._outer(sch, spatial))
            sch.decompose_reduction(block, reduce[0])

    def _tile(self, sch: s_tir.Schedule, block: object, spatial: list, reduce: list) -> None:
        """Keep rows x vectors of the result in registers while the reduction runs."""
        extents = _loop_extents(sch, spatial)
        width = largest_divisor(extents[-1], self.lanes)
        vectors = largest_divisor(extents[-1] // width, VECTORS if width == self.lanes else 1)
        panel, vector_row, vector = sch.split(spatial[-1], [None, vectors, width])
        rows = largest_divisor(extents[-2], ROW_TILE) if len(spatial) > 1 else 1
        outer = spatial[:-1]
        tile = [vector_row]
        if rows > 1:
            block_row, row = sch.split(spatial[-2], [None, rows])
            outer, tile = [*spatial[:-2], block_row], [row, vector_row]
        sch.reorder(panel, *outer, *reduce, *tile, vector)
        result = sch.cache_write(block, 0, "local")
        whole = math.prod(_loop_extents(sch, [panel, *outer]))
        fused = sch.fuse(panel, *outer) if len(outer) else panel
        sch.reverse_compute_at(result, fused)
        if whole > 1:
            sch.parallel(fused)
        for loop in tile:
            sch.unroll(loop)
        sch.vectorize(vector)
        self._copy_back(sch, result, fused, width)
        sch.decompose_reduction(block, reduce[0])

    @staticmethod
    def _copy_back(sch: s_tir.Schedule, block: object, shared: object, width: int) -> None:
        inner = sch.get_loops(block)[-1]
        if sch.get(inner).same_as(sch.get(shared)):
            return  # a tile of one element has no loops of its own
        if int(sch.get(inner).extent) % width == 0:
            _, vector = sch.split(inner, [None, width])
            sch.vectorize(vector)
