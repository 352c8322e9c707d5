"""The whole compilation of a component as one visible list of passes in four phases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tvm
import tvm_ffi
from tvm import relax

from compiler.gpu.machine import Gpu
from compiler.gpu.schedule import BindRest
from compiler.kernels.register_tile import Machine
from compiler.passes.decompose_attention import DecomposeAttention
from compiler.passes.dispatch import Dispatch, Tilings
from compiler.passes.join_multiplies import JoinMultiplies
from compiler.passes.lift_context import LiftContext
from compiler.passes.lift_packing import LiftPacking
from compiler.passes.narrow import Narrow
from compiler.passes.schedule import ScheduleRest
from compiler.passes.share_tensors import ShareTensors
from compiler.passes.simplify import Simplify
from compiler.passes.sink_transposes import SinkTransposes
from compiler.target import Cpu

transform = relax.transform
CHANNELS_LAST = {"relax.nn.conv2d": ["NHWC", "HWIO"]}
ANY_HOST = Machine(4, 16, 4)


@dataclass(frozen=True)
class Step:
    """One pass of a phase; with ``optimisation`` it runs only when that is on."""

    phase: str
    run: tvm.ir.transform.Pass
    optimisation: str | None = None


def _graph() -> list[Step]:
    """Phase 1: the graph, in PyTorch's operators and layouts, becomes channels-last with nothing to undo."""
    return [
        Step("graph", Simplify()),
        Step("graph", transform.ConvertLayout(CHANNELS_LAST), "layout"),
        Step("graph", Simplify()),
        Step("graph", SinkTransposes(), "layout"),
        Step("graph", Simplify()),
        Step("graph", transform.FoldConstant()),
        Step("graph", transform.EliminateCommonSubexpr()),
        Step("graph", transform.DeadCodeElimination()),
    ]


def _dispatch(machine: Machine | Gpu, on: dict[str, bool], used: set[str], tilings: Tilings | None) -> list[Step]:
    """Phase 2: operator + shape + target -> kernel of ours and its packing; what is done once a picture leaves."""
    return [
        Step("dispatch", DecomposeAttention(machine, on)),
        Step("dispatch", Simplify()),
        Step("dispatch", JoinMultiplies(machine), "joined_multiplies"),
        Step("dispatch", Dispatch(machine, on, used, tilings)),
        Step("dispatch", Simplify()),
        Step("dispatch", LiftContext(), "cached_context"),
        Step("dispatch", LiftPacking()),
    ]


def _rest(schedule: tvm.ir.transform.Pass) -> list[Step]:
    """Phase 3: the rest is legalised, fused and scheduled; no loop nest stays bare."""
    return [
        Step("rest", transform.LegalizeOps(skip_ops=["relax.reshape"])),
        Step("rest", transform.AnnotateTIROpPattern(), "fusion"),
        Step("rest", transform.FuseOps(), "fusion"),
        Step("rest", transform.FuseTIR(), "fusion"),
        Step("rest", transform.DeadCodeElimination()),
        Step("rest", schedule),
    ]


def _lower() -> list[Step]:
    """Phase 4: memory is planned and calls are lowered to the virtual machine.

    Nothing is freed before a function ends: tensors share storages by plan, and to free views costs more than it gives.
    """
    return [
        Step("lower", transform.ToNonDataflow()),
        Step("lower", transform.RemovePurityChecking()),
        Step("lower", transform.CallTIRRewrite()),
        Step("lower", transform.CanonicalizeBindings()),
        Step("lower", transform.StaticPlanBlockMemory()),
        Step("lower", transform.LowerAllocTensor()),
        Step("lower", transform.LowerRuntimeBuiltin()),
        Step("lower", ShareTensors()),
        Step("lower", transform.ComputePrimValue()),
        Step("lower", transform.VMShapeLower()),
        Step("lower", transform.AttachGlobalSymbol()),
    ]


def steps(cpu: Cpu, on: dict[str, bool], used: set[str], tilings: Tilings | None = None) -> list[Step]:
    """Return the passes in their order. This list is the compiler; everything else is what they do.

    ``used`` receives the names of the optimisations that a kernel was chosen for; ``tilings``: see ``Dispatch``.
    """
    return [*_graph(), *_dispatch(cpu.machine, on, used, tilings), *_rest(ScheduleRest(cpu.machine)), *_lower()]


def gpu_front(gpu: Gpu, on: dict[str, bool], used: set[str]) -> list[Step]:
    """Return the passes for a GPU up to those that know about loops."""
    narrow = [
        Step("graph", Narrow(gpu.dtype)),
        Step("graph", transform.EliminateCommonSubexpr()),
        Step("graph", Simplify()),
    ]
    return [*_graph(), *(narrow if gpu.is_narrow else []), *_dispatch(gpu, on, used, None)]


def gpu_back() -> list[Step]:
    """Return the passes that follow, for functions that run on the GPU."""
    return [*_rest(BindRest()), *_lower()]


def packing_back() -> list[Step]:
    """Return the passes that follow, for packing, which runs on any host."""
    return [*_rest(ScheduleRest(ANY_HOST)), *_lower()]


def optimise(
    module: tvm.IRModule,
    cpu: Cpu,
    on: dict[str, bool],
    debug_dir: Path | None,
    used: set[str],
    tilings: Tilings | None = None,
) -> Iterator[tuple[str, tvm.IRModule]]:
    """Run the passes for a CPU, see ``run``; ``tilings``: see ``Dispatch``."""
    return run(steps(cpu, on, used, tilings), module, cpu.target, on, used, debug_dir)


def run(
    passes: list[Step],
    module: tvm.IRModule,
    target: tvm.target.Target,
    on: dict[str, bool],
    used: set[str],
    debug_dir: Path | None = None,
) -> Iterator[tuple[str, tvm.IRModule]]:
    """Run those of ``passes`` that are on and yield (phase, module) after each phase.

    ``used`` receives the names of the optimisations that changed anything. With ``debug_dir`` the IR after each pass is
    written there, numbered and readable.
    """
    planned = [step for step in passes if step.optimisation is None or on[step.optimisation]]
    with target:
        for number, step in enumerate(planned, 1):
            before, module = module, step.run(module)
            if step.optimisation is not None and not tvm_ffi.structural_equal(before, module):
                used.add(step.optimisation)
            if debug_dir is not None:
                debug_dir.mkdir(parents=True, exist_ok=True)
                path = debug_dir / f"{number:02d}-{step.phase}-{step.run.info.name}.py"
                path.write_text(module.script(show_meta=False), encoding="utf-8")
            if number == len(planned) or planned[number].phase != step.phase:
                yield step.phase, module
