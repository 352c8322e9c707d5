"""The whole compilation of a component as one visible list of passes in four phases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tvm
import tvm_ffi
from tvm import relax

from compiler.passes.decompose_attention import DecomposeAttention
from compiler.passes.dispatch import Dispatch, Tilings
from compiler.passes.join_multiplies import join_multiplies
from compiler.passes.lift_context import LiftContext
from compiler.passes.lift_packing import LiftPacking
from compiler.passes.schedule import ScheduleRest
from compiler.passes.simplify import Simplify
from compiler.passes.sink_transposes import SinkTransposes
from compiler.target import Cpu

transform = relax.transform
CHANNELS_LAST = {"relax.nn.conv2d": ["NHWC", "HWIO"]}


@dataclass(frozen=True)
class Step:
    """One pass of a phase; with ``optimisation`` it runs only when that is on."""

    phase: str
    run: tvm.ir.transform.Pass
    optimisation: str | None = None


def steps(cpu: Cpu, on: dict[str, bool], used: set[str], tilings: Tilings | None = None) -> list[Step]:
    """Return the passes in their order. This list is the compiler; everything else is what they do.

    ``used`` receives the names of the optimisations that a kernel was chosen for; ``tilings``: see ``Dispatch``.
    """
    return [
        # Phase 1: the graph, in PyTorch's operators and layouts, becomes channels-last with nothing to undo.
        Step("graph", Simplify()),
        Step("graph", transform.ConvertLayout(CHANNELS_LAST), "layout"),
        Step("graph", Simplify()),
        Step("graph", SinkTransposes(), "layout"),
        Step("graph", Simplify()),
        Step("graph", transform.FoldConstant()),
        Step("graph", transform.EliminateCommonSubexpr()),
        Step("graph", transform.DeadCodeElimination()),
        # Phase 2: operator + shape + target -> kernel of ours and its packing; what is done once a picture leaves.
        Step("dispatch", DecomposeAttention(cpu.machine, on)),
        Step("dispatch", Simplify()),
        Step("dispatch", join_multiplies(cpu.machine), "joined_multiplies"),
        Step("dispatch", Dispatch(cpu.machine, on, used, tilings)),
        Step("dispatch", LiftContext(), "cached_context"),
        Step("dispatch", LiftPacking()),
        # Phase 3: the rest is legalised, fused and scheduled; no loop nest stays bare.
        Step("rest", transform.LegalizeOps(skip_ops=["relax.reshape"])),
        Step("rest", transform.AnnotateTIROpPattern(), "fusion"),
        Step("rest", transform.FuseOps(), "fusion"),
        Step("rest", transform.FuseTIR(), "fusion"),
        Step("rest", transform.DeadCodeElimination()),
        Step("rest", ScheduleRest(cpu.machine)),
        # Phase 4: memory is planned and calls are lowered to the virtual machine.
        Step("lower", transform.ToNonDataflow()),
        Step("lower", transform.RemovePurityChecking()),
        Step("lower", transform.CallTIRRewrite()),
        Step("lower", transform.StaticPlanBlockMemory()),
        Step("lower", transform.LowerAllocTensor()),
        Step("lower", transform.KillAfterLastUse()),
        Step("lower", transform.LowerRuntimeBuiltin()),
        Step("lower", transform.ComputePrimValue()),
        Step("lower", transform.VMShapeLower()),
        Step("lower", transform.AttachGlobalSymbol()),
    ]


def optimise(
    module: tvm.IRModule,
    cpu: Cpu,
    on: dict[str, bool],
    debug_dir: Path | None,
    used: set[str],
    tilings: Tilings | None = None,
) -> Iterator[tuple[str, tvm.IRModule]]:
    """Run the passes and yield (phase, module) after each phase.

    ``used`` receives the names of the optimisations that changed anything; ``tilings``: see ``Dispatch``. With
    ``debug_dir`` the IR after each pass is
    written there, numbered and readable.
    """
    planned = [step for step in steps(cpu, on, used, tilings) if step.optimisation is None or on[step.optimisation]]
    with cpu.target:
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
