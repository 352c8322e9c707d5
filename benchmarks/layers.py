"""--attention and --winograd: single layers of the UNet with guidance, each compiled alone in several ways.

The ways of a layer are timed in turn, one process for all of them.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from backends.reference import load_parts
from benchmarks.schema import AttentionRow, WinogradRow
from benchmarks.session import Session
from compiler.alone import load, save
from compiler.kernels import tile_winograd
from compiler.kernels.conv2d import ConvShape
from compiler.target import Cpu, resolve_target
from models.components import Component, Function
from runtime.engine import Engine, set_num_threads
from runtime.quality import finite, psnr
from utils.cpu import permit_tiles
from utils.progress import progress

ATTENTION = {"plain": "flash_attention,fused_softmax", "softmax": "flash_attention", "flash": ""}  # what is left out
OUTPUT_TILES = (2, 4, 6, 8)


@dataclass(frozen=True)
class AttentionLayer:
    """Queries [batch, queries, heads * head_dim] that meet keys of another length."""

    batch: int
    heads: int
    queries: int
    keys: int
    head_dim: int

    @property
    def flops(self) -> float:
        """Multiplies and adds of both products."""
        return 4.0 * self.batch * self.heads * self.queries * self.keys * self.head_dim

    @property
    def name(self) -> str:
        """Its kind and size."""
        kind = "self" if self.queries == self.keys else "cross"
        return f"{kind} {self.queries}x{self.keys}, {self.heads} heads of {self.head_dim}"


@dataclass(frozen=True)
class ConvLayer:
    """A 3x3 convolution of a picture [batch, channels, height, width], with padding and stride of 1."""

    batch: int
    channels: int
    filters: int
    height: int
    width: int

    @property
    def name(self) -> str:
        """Its channels and size."""
        return f"{self.channels} to {self.filters}, {self.width}x{self.height}"


class _Attention(nn.Module):
    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Take [B, N, C] and [B, M, C] twice, return [B, N, C]."""
        q, k, v = (x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2) for x in (q, k, v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return mixed.transpose(1, 2).flatten(2)


class _Conv(nn.Module):
    def __init__(self, layer: ConvLayer) -> None:
        super().__init__()
        self.conv = nn.Conv2d(layer.channels, layer.filters, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Take NHWC and return NHWC, as between the layers of a compiled UNet."""
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def unet_layers(session: Session) -> tuple[Counter[AttentionLayer], Counter[ConvLayer]]:
    """Return the attention layers and 3x3 convolutions of the UNet with guidance, and how often it calls each."""
    attention: Counter[AttentionLayer] = Counter()
    convolutions: Counter[ConvLayer] = Counter()

    def on_attention(module: Attention, arguments: tuple, named: dict[str, Any]) -> None:
        tokens = arguments[0] if arguments else named["hidden_states"]
        others = named.get("encoder_hidden_states")
        keys = (tokens if others is None else others).shape[1]
        dim = module.to_q.out_features // module.heads
        attention[AttentionLayer(tokens.shape[0], module.heads, tokens.shape[1], keys, dim)] += 1

    def on_conv(module: nn.Conv2d, arguments: tuple[torch.Tensor]) -> None:
        if module.kernel_size == (3, 3) and module.stride == (1, 1):
            batch, channels, height, width = arguments[0].shape
            convolutions[ConvLayer(batch, channels, module.out_channels, height, width)] += 1

    _, parts = load_parts(session.settings)
    unet = parts["unet"]
    for module in unet.module.modules():
        if isinstance(module, Attention):
            module.register_forward_pre_hook(on_attention, with_kwargs=True)
        elif isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(on_conv)
    with torch.inference_mode():
        unet.module(*(value for _, value in unet.functions[0].inputs))
    return attention, convolutions


def _host(session: Session) -> Cpu:
    threads = set_num_threads(session.settings.num_threads)
    torch.set_num_threads(threads)
    permit_tiles()
    return resolve_target("llvm")


@dataclass
class _Way:
    """A layer compiled in one way: its engine, memory in bytes, PSNR, and seconds so far."""

    engine: Engine
    memory: int
    psnr: float
    seconds: list[float]


def _compiled(component: Component, cpu: Cpu, disable: str, folder: Path) -> _Way:
    entry = save(component, folder, cpu, disable)
    engine = load(entry, component.name, folder)
    inputs = [value for _, value in component.functions[0].inputs]
    result = engine("main", *(value.numpy() for value in inputs))
    with torch.inference_mode():
        exact = component.module.double()(*(value.double() for value in inputs)).numpy()
    component.module.float()
    quality = finite(psnr(exact, result))
    return _Way(engine, entry.functions["main"].workspace + entry.parameters.size, quality, [])


def _time(ways: dict[str, _Way], inputs: list[np.ndarray], runs: int) -> None:
    """Call the ways of a layer in turn, beginning with another one each time; each has been called before."""
    order = list(ways.values())
    for i in range(runs):
        for way in order[i % len(order) :] + order[: i % len(order)]:
            way.engine("main", *inputs)  # not counted: its weights come from memory
            start = time.perf_counter()
            way.engine("main", *inputs)
            way.seconds.append(time.perf_counter() - start)


def _measured(component: Component, kinds: dict[str, tuple[Cpu, str]], runs: int) -> dict[str, _Way]:
    with tempfile.TemporaryDirectory() as folder:
        ways = {name: _compiled(component, cpu, disable, Path(folder) / name) for name, (cpu, disable) in kinds.items()}
        _time(ways, [value.numpy() for _, value in component.functions[0].inputs], runs)
    return ways


def _largest_first(layers: Counter[Any], cost: Callable[[Any], float]) -> list[tuple[Any, int]]:
    return sorted(layers.items(), key=lambda item: -item[1] * cost(item[0]))


def attention_rows(session: Session, runs: int) -> Iterator[AttentionRow]:
    """Measure each attention layer: plain, with a fused softmax, flash.

    Raises:
        UserError: the model can't be loaded, or can't make this size.
    """
    cpu, (layers, _) = _host(session), unet_layers(session)
    random = torch.Generator().manual_seed(0)
    found = _largest_first(layers, lambda layer: layer.flops)
    for layer, calls in progress(found, "attention layers", len(found)):
        shapes = {"q": layer.queries, "k": layer.keys, "v": layer.keys}
        channels = layer.heads * layer.head_dim
        inputs = tuple((name, torch.randn(layer.batch, n, channels, generator=random)) for name, n in shapes.items())
        component = Component("attention", _Attention(layer.heads).eval(), (Function("main", inputs),))
        kinds = {name: (cpu, disable) for name, disable in ATTENTION.items()}
        for method, way in _measured(component, kinds, runs).items():
            rate = layer.flops / statistics.median(way.seconds) / 1e9
            sizes = (layer.heads, layer.queries, layer.keys, layer.head_dim)
            yield AttentionRow(layer.name, *sizes, calls, method, way.seconds, way.memory, rate, way.psnr)


def _gflop(layer: ConvLayer, method: str) -> float:
    """Return 1e9 multiplies and adds of the products of a convolution."""
    pairs = layer.batch * layer.channels * layer.filters
    if method in ("direct", "tiles"):
        return 2e-9 * pairs * layer.height * layer.width * 9
    m = int(method.removeprefix("tiles "))
    tiles = math.ceil(layer.height / m) * math.ceil(layer.width / m)
    return 2e-9 * pairs * tiles * (m + 2) ** 2


def winograd_rows(session: Session, runs: int) -> Iterator[WinogradRow]:
    """Measure each 3x3 convolution: direct, in tile registers, there by F(2 x 2), and by F(m x m) of several m.

    Raises:
        UserError: the model can't be loaded, or can't make this size.
    """
    cpu, (_, layers) = _host(session), unet_layers(session)
    panel, lanes = cpu.machine.panel, cpu.machine.lanes
    found = [
        (layer, calls)
        for layer, calls in _largest_first(layers, lambda layer: _gflop(layer, "direct"))
        if layer.channels % lanes == 0 and layer.filters % panel == 0
    ]
    kinds = {"direct": (cpu, "winograd,split_float32")}
    if cpu.machine.unit is not None:
        kinds["tiles"] = (cpu, "winograd")
    for m in OUTPUT_TILES:
        kinds[str(m)] = (replace(cpu, machine=replace(cpu.machine, winograd_tile=m)), "split_float32")
    for layer, calls in progress(found, "convolutions", len(found)):
        torch.manual_seed(0)
        x = torch.randn(layer.batch, layer.height, layer.width, layer.channels)
        component = Component("conv", _Conv(layer).eval(), (Function("main", (("x", x),)),))
        size = (layer.batch, layer.height, layer.width, layer.channels, layer.filters)
        shape = ConvShape(*size, (3, 3), (1, 1), (1, 1, 1, 1))
        ways = {**kinds, "tiles 2": (cpu, "")} if tile_winograd.accepts(shape, cpu.machine) else kinds
        for method, way in _measured(component, ways, runs).items():
            sizes = (layer.channels, layer.filters, layer.height, layer.width)
            yield WinogradRow(
                layer.name, *sizes, calls, method, way.seconds, _gflop(layer, method), way.memory, way.psnr
            )
