"""Components small enough to compile in a second, and the way from a module to a checked engine."""

from dataclasses import replace
from pathlib import Path

import torch
import tvm
from torch import nn

from compiler import alone
from compiler.alone import load
from compiler.kernels.plan import Plan
from compiler.kernels.tiling import choices
from compiler.kernels.tunable import TUNABLE
from compiler.optimisations import enabled
from compiler.passes.dispatch import Tilings
from compiler.pipeline import optimise
from compiler.target import Cpu, resolve_target
from compiler.trace import trace
from compiler.verify import Parity, verify
from models.components import Component, Function
from runtime import artifact

CPU = resolve_target("llvm")
WITHOUT_UNIT = replace(CPU, machine=replace(CPU.machine, unit=None))
ALL_ON = enabled("")


class Block(nn.Module):
    """What a UNet's block is made of, once each; few sizes divide by anything."""

    def __init__(self) -> None:
        super().__init__()
        self.begin = nn.Conv2d(9, 32, 3, padding=1)
        self.norm = nn.GroupNorm(4, 32)
        self.conv = nn.Conv2d(32, 32, 3, padding=1)
        self.time = nn.Linear(5, 32)
        self.join_norm = nn.GroupNorm(4, 64)
        self.join = nn.Conv2d(64, 32, 3, padding=1)
        self.shortcut = nn.Conv2d(64, 32, 1)
        self.down = nn.Conv2d(32, 24, 3, stride=2, padding=1)
        self.skip = nn.Conv2d(32, 24, 1, stride=2)
        self.layer_norm = nn.LayerNorm(24)
        self.q, self.k, self.v = (nn.Linear(24, 32, bias=False) for _ in range(3))
        self.out = nn.Linear(32, 24)
        self.feed = nn.Linear(24, 45)
        self.back = nn.Linear(45, 24)
        self.end = nn.Conv2d(24, 7, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Take x [B, 9, h, w] and t [B, 5]; return [B, 7, 2 ceil(h / 2), 2 ceil(w / 2)]."""
        x = self.begin(x)
        y = self.conv(nn.functional.silu(self.norm(x))) + self.time(t)[:, :, None, None]
        both = torch.cat([x, y], dim=1)
        y = self.join(nn.functional.silu(self.join_norm(both))) + self.shortcut(both)
        y = self.down(y) + self.skip(x)
        batch, channels, height, width = y.shape
        tokens = y.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        normed = self.layer_norm(tokens)
        heads = [f(normed).view(batch, -1, 4, 8).transpose(1, 2) for f in (self.q, self.k, self.v)]
        mixed = nn.functional.scaled_dot_product_attention(*heads)
        tokens = self.out(mixed.transpose(1, 2).reshape(batch, -1, 32)) + tokens
        tokens = self.back(nn.functional.gelu(self.feed(tokens))) + tokens
        y = tokens.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        return self.end(nn.functional.interpolate(y, scale_factor=2.0))


def block_component(seed: int = 0) -> Component:
    """Return ``Block`` with random weights and two functions, of batch 2 and 1."""
    random = torch.Generator().manual_seed(seed)
    module = Block().eval().requires_grad_(False)
    spread = {"q.weight": 0.9, "k.weight": 0.9, "join.weight": 0.1, "shortcut.weight": 0.1}
    for name, parameter in module.named_parameters():
        parameter.normal_(std=spread.get(name, 0.3), generator=random)

    def function(name: str, batch: int) -> Function:
        x, t = torch.randn(batch, 9, 14, 9, generator=random), torch.randn(batch, 5, generator=random)
        return Function(name, (("x", x), ("t", t)), fixed=("t",))

    return Component("block", module, (function("pair", 2), function("single", 1)))


class AnotherTiling:
    """Chooses the second value of the first field of whatever can be tuned, in the place of records."""

    def choose(self, _function: str, plan: Plan, _call: object) -> dict[str, int]:
        if plan.name not in TUNABLE:
            return {}
        field, values = next(iter(choices(TUNABLE[plan.name].tiling).items()))
        return {field: values[1]}


def after(
    component: Component, phase: str, disable: str = "", cpu: Cpu = CPU, tilings: Tilings | None = None
) -> tvm.IRModule:
    """Return the module of ``component`` after a phase of the pipeline."""
    return dict(optimise(trace(component).module, cpu, enabled(disable), None, set(), tilings))[phase]


def component_of(module: nn.Module, x: torch.Tensor) -> Component:
    """Return a component with one function ``main`` of one input."""
    return Component("small", module.eval().requires_grad_(False), (Function("main", (("x", x),)),))


def save(component: Component, folder: Path, disable: str = "", cpu: Cpu = CPU) -> artifact.Component:
    """Compile ``component`` into ``folder`` and return its entry in the manifest."""
    return alone.save(component, folder, cpu, disable)


def parity(component: Component, folder: Path, disable: str = "", cpu: Cpu = CPU, dtype: str = "float32") -> Parity:
    """Compile, load and verify ``component``; below the floor this raises."""
    return verify(component, load(save(component, folder, disable, cpu), component.name, folder), dtype)
