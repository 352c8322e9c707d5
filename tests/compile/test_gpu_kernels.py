"""The GPU's kernels, emulated on the host, against PyTorch, at shapes that fit no tile."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest
import torch
import tvm
from gpu_emulator import emulator
from torch.nn import functional

from compiler.gpu.attention import attention
from compiler.gpu.group_norm import group_norm
from compiler.gpu.layer_norm import layer_norm
from compiler.gpu.machine import Gpu
from compiler.gpu.multiply import multiply
from compiler.kernels.conv2d import ConvShape
from compiler.kernels.flash_attention import AttentionShape
from compiler.kernels.group_norm import GroupNormShape
from runtime.quality import psnr

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="CUDA's headers are needed")
TYPES = {"float16": np.dtype("float16"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
FLOOR = {"float16": 75.0, "bfloat16": 58.0}  # dB; the rounding of the result alone gives 80 and 62
ARCH = {"float16": "sm_75", "bfloat16": "sm_80"}  # the oldest; sm_75 has few multiprocessors, so large tiles come early


@dataclass
class Case:
    """A kernel, its inputs, the shapes of its results, and what they are."""

    kernel: tvm.tirx.PrimFunc
    inputs: list[np.ndarray]
    outputs: list[tuple[int, ...]]
    expected: torch.Tensor


class Cases:
    """Makes cases of random numbers in one type."""

    def __init__(self, dtype: str) -> None:
        self.gpu, self.type = Gpu(ARCH[dtype], dtype), TYPES[dtype]
        self.generator = np.random.default_rng(0)

    def numbers(self, *shape: int) -> np.ndarray:
        return self.generator.standard_normal(shape).astype(self.type)

    @staticmethod
    def wide(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array.astype("float32"))

    def attention(self, batch: int, queries: int, keys: int, heads: int, size: int, offset: int | None) -> Case:
        q, k, v = (self.numbers(batch, tokens, heads, size) for tokens in (queries, keys, keys))
        shape = AttentionShape(batch, heads, queries, keys, size, size, size**-0.5, offset)
        turned = [self.wide(x).transpose(1, 2) for x in (q, k, v)]
        seen = None if offset is None else torch.ones(queries, keys).tril(offset).bool()
        expected = functional.scaled_dot_product_attention(*turned, attn_mask=seen).transpose(1, 2)
        return Case(attention(shape, self.gpu), [q, k, v], [(batch, queries, heads, size)], expected)

    def group_norm(self, pixels: int, groups: int, widths: tuple[int, ...], activation: str | None) -> Case:
        channels = sum(widths)
        x, gamma, beta = (self.numbers(2, pixels, channels) + 5).astype(self.type), *self._affine(channels)
        kernel = group_norm(GroupNormShape(2, pixels, channels, groups, 1e-5), activation, self.gpu, widths)
        parts = np.split(x, np.cumsum(widths)[:-1], axis=2)
        wide = [self.wide(value) for value in (x, gamma, beta)]
        expected = functional.group_norm(wide[0].transpose(1, 2), groups, *wide[1:], 1e-5).transpose(1, 2)
        expected = expected if activation is None else functional.silu(expected)
        return Case(kernel, [*parts, gamma, beta], [x.shape], expected)

    def layer_norm(self, rows: int, channels: int) -> Case:
        x, gamma, beta = (self.numbers(rows, channels) + 5).astype(self.type), *self._affine(channels)
        wide = [self.wide(value) for value in (x, gamma, beta)]
        expected = functional.layer_norm(wide[0], (channels,), *wide[1:], 1e-5)
        return Case(layer_norm(rows, channels, 1e-5, self.gpu), [x, gamma, beta], [(rows, channels)], expected)

    def _affine(self, channels: int) -> tuple[np.ndarray, np.ndarray]:
        return self.numbers(channels), self.numbers(channels)

    def conv2d(self, shape: ConvShape, widths: tuple[int, ...] = (), activation: str | None = None) -> Case:
        """A convolution with a bias, an embedding of each picture and a residual."""
        s = shape
        memory = (s.batch, s.height // s.upsample, s.width // s.upsample, s.inputs)
        x, w = self.numbers(*memory), (self.numbers(*s.kernel, s.inputs, s.outputs) / 8).astype(self.type)
        rows = (1, s.batch, s.pixels)
        added = [self.numbers(count, s.outputs) for count in rows]
        kernel = multiply(s, rows, self.gpu, activation, 1, widths)
        picture = self.wide(x).permute(0, 3, 1, 2).repeat_interleave(s.upsample, 2).repeat_interleave(s.upsample, 3)
        top, left, bottom, right = s.padding
        padded = functional.pad(picture, (left, right, top, bottom))
        found = functional.conv2d(padded, self.wide(w).permute(3, 2, 0, 1), stride=s.stride)
        found = found.permute(0, 2, 3, 1).reshape(s.batch, -1, s.outputs)
        bias, embedding, residual = (self.wide(value) for value in added)
        found = (found + bias + embedding[:, None]).reshape(s.pixels, s.outputs) + residual
        expected = functional.silu(found) if activation == "silu" else found
        parts = np.split(x, np.cumsum(widths)[:-1], axis=3) if widths else [x]
        packed = w.transpose(3, 0, 1, 2).reshape(s.outputs, -1)
        return Case(kernel, [*parts, packed, *added], [(s.pixels, s.outputs)], expected)

    def matmul(self, rows: int, depth: int, columns: int, activation: str | None = None, results: int = 1) -> Case:
        x, w, bias = self.numbers(rows, depth), self.numbers(columns, depth), self.numbers(1, columns)
        gated = activation == "geglu"
        packed = w.reshape(2, -1, 8, depth).transpose(1, 0, 2, 3).reshape(columns, depth) if gated else w
        shape = ConvShape(1, rows, 1, depth, columns, (1, 1), (1, 1), (0, 0, 0, 0))
        found = self.wide(x) @ self.wide(w).T + self.wide(bias)
        if gated:
            value, gate = found.chunk(2, dim=1)
            found = value * functional.gelu(gate)
        elif activation == "gelu":
            found = functional.gelu(found)
        kernel = multiply(shape, (1,), self.gpu, activation, results)
        width = columns // (2 if gated else results)
        return Case(kernel, [x.reshape(1, rows, 1, depth), packed, bias], [(rows, width)] * results, found)


def cases(dtype: str) -> dict[str, Case]:
    """Return cases by name; all of them are compiled at once."""
    c = Cases(dtype)
    square, strided = ((3, 3), (1, 1), (1, 1, 1, 1)), ((3, 3), (2, 2), (0, 0, 1, 1))
    return {
        "attention_40": c.attention(1, 70, 130, 2, 40, None),
        "attention_causal": c.attention(1, 77, 77, 2, 64, 0),
        "attention_causal_offset": c.attention(1, 5, 9, 1, 16, 4),
        "attention_160": c.attention(2, 5, 40, 1, 160, None),
        "attention_one_block": c.attention(1, 33, 64, 1, 80, None),
        "attention_one_query": c.attention(1, 1, 1, 1, 8, None),
        "group_norm": c.group_norm(37, 4, (40,), "silu"),
        "group_norm_joined": c.group_norm(64, 8, (16, 32), None),
        "layer_norm": c.layer_norm(7, 100),
        "conv2d": c.conv2d(ConvShape(2, 9, 7, 24, 20, *square)),
        "conv2d_large_tile": c.conv2d(ConvShape(1, 63, 65, 8, 72, *square), activation="silu"),
        "conv2d_joined": c.conv2d(ConvShape(1, 6, 5, 40, 10, *square), widths=(16, 24)),
        "conv2d_upsampled": c.conv2d(ConvShape(1, 10, 8, 16, 6, *square, 2)),
        "conv2d_strided": c.conv2d(ConvShape(1, 9, 8, 16, 6, *strided)),
        "conv2d_odd_outputs": c.conv2d(ConvShape(1, 5, 5, 8, 3, *square)),
        "matmul": c.matmul(70, 40, 48, "gelu"),
        "matmul_split": c.matmul(70, 40, 48, None, 3),
        "matmul_gated": c.matmul(100, 24, 48, "geglu"),
    }


@pytest.fixture(scope="module", params=sorted(TYPES))
def emulated_cases(request):
    made = cases(request.param)
    gpu = Gpu(ARCH[request.param], request.param)
    with emulator({name: case.kernel for name, case in made.items()}, gpu) as module:
        yield request.param, made, module


@pytest.mark.parametrize("name", sorted(cases("float16")))
def test_kernel_matches_pytorch(emulated_cases, name):
    dtype, made, module = emulated_cases
    case = made[name]
    outputs = [tvm.runtime.tensor(np.full(shape, np.nan, TYPES[dtype])) for shape in case.outputs]
    module[name](*(tvm.runtime.tensor(np.ascontiguousarray(value)) for value in case.inputs), *outputs)
    found = np.concatenate([output.numpy().astype("float32") for output in outputs], axis=-1)
    assert psnr(case.expected.numpy().reshape(found.shape), found) >= FLOOR[dtype]
