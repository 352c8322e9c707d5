"""Rendered scenes on disk, PSNR, and the PNGs that show how training goes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from demo.dataset import make_scene, render
from demo.saving import replacing

MIX = {"pairs": 0.35, "plain": 0.4, "sized": 0.4}  # shares of the training stream, see dataset.make_scene
CHUNK = 250


def _draw_chunk(task: tuple[str, int, int, int, int]) -> None:
    path, count, size, seed, first = task
    pixels = np.lib.format.open_memmap(path, mode="r+")
    for index in range(first, min(first + CHUNK, count)):
        pixels[index] = np.asarray(render(make_scene(index, seed, **MIX), size))  # type: ignore[arg-type]


def scenes(path: Path, count: int, size: int, seed: int) -> np.ndarray:
    """Return the training scenes as uint8 [count,size,size,3], mapped from ``path``, drawn first if need be."""
    if path.exists() and np.load(path, mmap_mode="r").shape == (count, size, size, 3):
        return np.load(path, mmap_mode="r")
    with replacing(path) as temporary:
        np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=(count, size, size, 3)).flush()
        if hasattr(os, "posix_fallocate"):  # a disk that fills under a mapped file would kill the process
            with temporary.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
        tasks = [(str(temporary), count, size, seed, first) for first in range(0, count, CHUNK)]
        if len(tasks) == 1:
            _draw_chunk(tasks[0])
        else:
            with multiprocessing.get_context("spawn").Pool(min(os.cpu_count() or 1, len(tasks))) as pool:
                for _ in pool.imap_unordered(_draw_chunk, tasks):
                    pass
    return np.load(path, mmap_mode="r")


def held_out(count: int, size: int, seed: int) -> np.ndarray:
    """Return ``count`` scenes that training never sees, as uint8 [count,size,size,3]."""
    return np.stack([np.asarray(render(make_scene(i, seed, "held-out"), size)) for i in range(count)])


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """Turn uint8 [B,H,W,3] into float32 [B,3,H,W] from -1 to 1."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).float() / 127.5 - 1


def to_pixels(images: torch.Tensor) -> np.ndarray:
    """Turn float [B,3,H,W] from -1 to 1 into uint8 [B,H,W,3]."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean over pictures of 20 log10(255 / RMSE), both uint8 [B,H,W,3]."""
    error = ((a.astype(np.float32) - b.astype(np.float32)) ** 2).mean(axis=(1, 2, 3))
    return float((10 * np.log10(255**2 / np.maximum(error, 1e-3))).mean())


def save_atomically(image: Image.Image, path: Path) -> None:
    """Write a PNG whole or not at all."""
    with replacing(path) as temporary:
        image.save(temporary, "PNG")


def grid(pixels: np.ndarray, path: Path, columns: int, labels: Sequence[str] = ()) -> None:
    """Write uint8 [B,H,W,3] as one PNG of ``columns`` pictures a row, a label under each."""
    count, height, width, _ = pixels.shape
    line = 12 if labels else 0
    sheet = Image.new("RGB", (columns * width, -(-count // columns) * (height + line)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, picture in enumerate(pixels):
        x, y = i % columns * width, i // columns * (height + line)
        sheet.paste(Image.fromarray(picture), (x, y))
        if labels:
            draw.text((x + 1, y + height), labels[i][: width // 5], fill="black", font_size=9)
    save_atomically(sheet, path)


def loss_curve(losses: Sequence[float], path: Path, title: str) -> None:
    """Write the losses, averaged to at most 400 points, as a PNG with a logarithmic axis."""
    if not losses:
        return
    points = [float(np.mean(part)) for part in np.array_split(losses, min(400, len(losses)))]
    logs = np.log10(np.maximum(points, 1e-8))
    low, high = float(logs.min()), float(max(logs.max(), logs.min() + 0.1))
    image = Image.new("RGB", (480, 240), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle([50, 20, 470, 220], outline="black")
    xs = np.linspace(50, 470, len(points))
    ys = 220 - (logs - low) / (high - low) * 200
    draw.line([(float(x), float(y)) for x, y in zip(xs, ys, strict=True)], fill=(200, 40, 40), width=2)
    draw.text((50, 4), f"{title}: {len(losses)} steps", fill="black")
    for y, value in ((20, high), (210, low)):
        draw.text((4, y), f"{10**value:.4f}", fill="black")
    save_atomically(image, path)
