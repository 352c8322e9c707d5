"""What the kernels that can be tuned compute, in NumPy: some rows of it, for the shapes are those of real models."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tvm

from compiler.kernels.conv2d import ConvShape
from compiler.kernels.epilogue import GEGLU
from compiler.kernels.flash_attention import AttentionShape
from compiler.kernels.group_norm import GroupNormShape
from compiler.kernels.register_tile import Machine
from compiler.kernels.split import BLOCK
from compiler.kernels.tile_winograd import WEIGHT
from compiler.kernels.tunable import make
from compiler.kernels.upsampled import TAPS, has_phases
from runtime.engine import set_num_threads
from runtime.quality import psnr
from utils.cpu import permit_tiles

ROWS = 64  # rows of the result that are compared, from its beginning, middle and end
FLOOR = {True: 35.0, False: 60.0}  # dB, whether numbers are rounded to bfloat16: the gates of a component
ROUNDED = ("tile_conv2d", "tile_matmul", "tile_attention")

Case = tuple[list[np.ndarray], Callable[[np.ndarray], np.ndarray], list[tuple[int, ...]]]


def _normal(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.standard_normal(shape, np.float32)


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def _activated(x: np.ndarray, name: str | None) -> np.ndarray:
    if name == GEGLU:
        value, gate = np.split(x, 2, axis=1)
        return value * _gelu(gate)
    if name == "gelu":
        return _gelu(x)
    factor = {"silu": 1.0, "quick_gelu": 1.702}.get(name or "")
    return x if factor is None else x / (1 + np.exp(-factor * x))


def _panels(weight: np.ndarray, machine: Machine, gated: bool) -> np.ndarray:
    """Pack [rows, columns] as panels [panels, rows, panel]; a gated one holds a vector of values and their gates."""
    rows, columns = weight.shape
    if gated:
        vectors = weight.reshape(rows, 2, columns // 2 // machine.lanes, machine.lanes).transpose(2, 0, 1, 3)
        return np.ascontiguousarray(vectors.reshape(-1, rows, machine.panel))
    count = -(-columns // machine.panel)
    padded = np.zeros((rows, count * machine.panel), np.float32)
    padded[:, :columns] = weight
    return np.ascontiguousarray(padded.reshape(rows, count, machine.panel).transpose(1, 0, 2))


def _phases(panels: np.ndarray, inputs: int) -> np.ndarray:
    """Add up the taps [panels, 9 x inputs, panel] that meet the same pixel of a doubled picture, by phase."""
    taps = panels.reshape(len(panels), 3, 3, inputs, -1)
    sums = np.array([[[tap in met for tap in range(3)] for met in phase] for phase in TAPS], np.float32)
    phases = np.einsum("yri,xcj,pijko->yxprcko", sums, sums, taps, optimize=True)
    return np.ascontiguousarray(phases.reshape(4 * len(panels), 4 * inputs, -1))


def _words(panels: np.ndarray, parts: int) -> np.ndarray:
    """Split panels into bfloat16 parts and pair the numbers k and k + 16 of each block."""
    half, found = BLOCK // 2, []
    for _ in range(parts):
        upper = (panels.view(np.uint32) + np.uint32(0x8000)) & np.uint32(0xFFFF0000)
        panels = panels - upper.view(np.float32)
        bits = (upper >> np.uint32(16)).reshape(
            len(panels), -1, 2, half, 2, half
        )  # panel, block, half, pair, side, column
        found.append((bits[:, :, 0] | bits[:, :, 1] << np.uint32(16)).transpose(0, 1, 3, 2, 4))
    return np.ascontiguousarray(np.stack(found, axis=2))


def _convolution(
    random: np.random.Generator,
    shape: ConvShape,
    operand_rows: tuple[int, ...],
    machine: Machine,
    activation: str | None = None,
    results: int = 1,
    widths: tuple[int, ...] = (),
) -> Case:
    small = (shape.batch, shape.height // shape.upsample, shape.width // shape.upsample)
    parts = [_normal(random, *small, width) for width in widths or (shape.inputs,)]
    weight = _normal(random, math.prod(shape.kernel) * shape.inputs, shape.outputs) / math.sqrt(shape.inputs)
    added = [_normal(random, rows, shape.outputs) for rows in operand_rows]
    whole = np.concatenate(parts, axis=3).repeat(shape.upsample, axis=1).repeat(shape.upsample, axis=2)
    top, left, bottom, right = shape.padding
    padded = np.pad(whole, ((0, 0), (top, bottom), (left, right), (0, 0))).astype(np.float64)

    def rows_of(rows: np.ndarray) -> np.ndarray:
        height, width = shape.result
        n, y, x = rows // (height * width), rows // width % height, rows % width
        taps = [
            padded[n, y * shape.stride[0] + i, x * shape.stride[1] + j]
            for i in range(shape.kernel[0])
            for j in range(shape.kernel[1])
        ]
        sums = np.concatenate(taps, axis=1) @ weight.astype(np.float64)
        sums = sums + sum(a[rows // (shape.pixels // len(a))].astype(np.float64) for a in added)
        return _activated(sums, activation)

    gated = activation == GEGLU
    output = (shape.pixels, shape.outputs // (2 if gated else results))
    return [*parts, _panels(weight, machine, gated), *added], rows_of, [output] * results


def _tiled(
    random: np.random.Generator, shape: ConvShape, operand_rows: tuple[int, ...], machine: Machine, *others: Any
) -> Case:
    inputs, rows_of, outputs = _convolution(random, shape, operand_rows, machine, *others)
    place = -1 - len(operand_rows)
    panels = _phases(inputs[place], shape.inputs) if has_phases(shape) else inputs[place]
    inputs[place] = _words(panels, machine.parts)
    return inputs, rows_of, outputs


def _tile_winograd(
    random: np.random.Generator,
    shape: ConvShape,
    operand_rows: tuple[int, ...],
    machine: Machine,
    widths: tuple[int, ...] = (),
) -> Case:
    inputs, rows_of, outputs = _convolution(random, shape, operand_rows, machine, widths=widths)
    place, g = -1 - len(operand_rows), np.array(WEIGHT, np.float32)
    taps = inputs[place].reshape(len(inputs[place]), 3, 3, shape.inputs, -1)
    points = np.einsum("iy,jx,pyxko->ijpko", g, g, taps, optimize=True)
    inputs[place] = _words(points.reshape(-1, *points.shape[3:]), machine.parts)
    return inputs, rows_of, outputs


def _multiply(
    random: np.random.Generator, m: int, k: int, n: int, operand_rows: tuple[int, ...], machine: Machine, *others: Any
) -> Case:
    shape = ConvShape(1, m, 1, k, n, (1, 1), (1, 1), (0, 0, 0, 0))
    parts, rows_of, outputs = _convolution(random, shape, operand_rows, machine, *others)
    sources = len(parts) - 1 - len(operand_rows)
    return [*(part.reshape(m, -1) for part in parts[:sources]), *parts[sources:]], rows_of, outputs


def _attention(random: np.random.Generator, shape: AttentionShape, *_registers: Any) -> Case:
    size = {"queries": shape.size, "keys": shape.size, "values": shape.value_size}
    q = _normal(random, shape.batch, shape.queries, shape.heads, size["queries"])
    k = _normal(random, shape.batch, shape.keys, shape.heads, size["keys"])
    v = _normal(random, shape.batch, shape.keys, shape.heads, size["values"])

    def rows_of(rows: np.ndarray) -> np.ndarray:
        found = []
        for row in rows:
            n, query, h = row // (shape.queries * shape.heads), row // shape.heads % shape.queries, row % shape.heads
            scores = k[n, :, h].astype(np.float64) @ q[n, query, h] * shape.scale
            if shape.offset is not None:
                scores[query + shape.offset + 1 :] = -np.inf
            weights = np.exp(scores - scores.max())
            found.append(weights @ v[n, :, h] / weights.sum())
        return np.stack(found)

    return [q, k, v], rows_of, [(shape.batch, shape.queries, shape.heads, shape.value_size)]


def _group_norm(
    random: np.random.Generator,
    shape: GroupNormShape,
    activation: str | None,
    _machine: Machine,
    widths: tuple[int, ...] = (),
) -> Case:
    parts = [_normal(random, shape.batch, shape.pixels, width) + 1 for width in widths or (shape.channels,)]
    gamma, beta = _normal(random, shape.channels), _normal(random, shape.channels)
    grouped = np.concatenate(parts, axis=2).astype(np.float64).reshape(shape.batch, shape.pixels, shape.groups, -1)
    mean, variance = grouped.mean(axis=(1, 3), keepdims=True), grouped.var(axis=(1, 3), keepdims=True)
    normed = ((grouped - mean) / np.sqrt(variance + shape.epsilon)).reshape(-1, shape.channels) * gamma + beta
    output = (shape.batch, shape.pixels, shape.channels)
    return [*parts, gamma, beta], lambda rows: _activated(normed[rows], activation), [output]


CASES: dict[str, Callable[..., Case]] = {
    "tile_conv2d": _tiled,
    "tile_matmul": _tiled,
    "tile_winograd": _tile_winograd,
    "matmul": _multiply,
    "conv2d": lambda random, *arguments: _convolution(random, *arguments[:3]),
    **{f"winograd_{m}": lambda random, *arguments: _convolution(random, *arguments[:3]) for m in (2, 4, 6)},
    "tile_attention": _attention,
    "flash_attention": _attention,
    "group_norm": _group_norm,
}


def agrees(
    name: str, arguments: tuple[Any, ...], chosen: Mapping[str, int], target: tvm.target.Target, seed: int = 0
) -> bool:
    """Tell whether a kernel with what was chosen computes on random numbers what NumPy does in float64."""
    permit_tiles()
    set_num_threads(None)
    inputs, rows_of, outputs = CASES[name](np.random.default_rng(seed), *arguments)
    function = make(name, arguments, chosen).with_attr("global_symbol", "main")
    library = tvm.compile(tvm.IRModule({"main": function}), target=target)
    results = [tvm.runtime.tensor(np.full(output, np.nan, np.float32)) for output in outputs]
    library["main"](*(tvm.runtime.tensor(value) for value in inputs), *results)
    whole = np.concatenate([result.numpy().reshape(-1, result.shape[-1]) for result in results], axis=1)
    count = min(ROWS, len(whole))
    rows = np.unique(np.linspace(0, len(whole) - 1, count).astype(int))
    rounded = any(isinstance(value, Machine) and value.parts == 1 for value in arguments) and name in ROUNDED
    return bool(np.isfinite(whole).all()) and psnr(rows_of(rows), whole[rows]) >= FLOOR[rounded]
