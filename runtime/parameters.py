"""Packed parameters as safetensors, every tensor 64-byte aligned, so that mapping the file copies nothing.

The format allows no holes, so padding is a tensor of its own, named ``_padding.N``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np

from utils.errors import UserError

ALIGNMENT = 64
PADDING = "_padding."
MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors format
DTYPES = {
    "F32": np.dtype("float32"),
    "F16": np.dtype("float16"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("int64"),
    "I32": np.dtype("int32"),
    "U32": np.dtype("uint32"),
    "I8": np.dtype("int8"),
    "U8": np.dtype("uint8"),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def _layout(types: Mapping[str, tuple[list[int], str]]) -> dict[str, dict]:
    """Return the header's entries, offsets counted from the start of the data."""
    entries: dict[str, dict] = {}
    offset = 0
    for name, (shape, dtype) in types.items():
        size = math.prod(shape) * np.dtype(dtype).itemsize
        entries[name] = {
            "dtype": NAMES[np.dtype(dtype)],
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
        if rest := -offset % ALIGNMENT:
            padding = {"dtype": "U8", "shape": [rest], "data_offsets": [offset, offset + rest]}
            entries[f"{PADDING}{len(entries)}"] = padding
            offset += rest
    return entries


def write_parameters(
    path: Path, types: Mapping[str, tuple[list[int], str]], arrays: Iterable[tuple[str, np.ndarray]]
) -> str:
    """Write ``arrays`` one after the other, in the order of ``types`` (name -> shape, dtype).

    One array is written while the next one is made; no more than these are in memory. Returns the file's SHA-256 in
    hexadecimal.
    """
    header = json.dumps(_layout(types)).encode()
    header += b" " * (-(len(header) + 8) % ALIGNMENT)
    digest = hashlib.sha256()
    with path.open("wb") as stream, ThreadPoolExecutor(1) as writer:

        def put(*pieces: bytes | memoryview) -> None:
            for piece in pieces:
                stream.write(piece)
                digest.update(piece)

        written = writer.submit(put, len(header).to_bytes(8, "little"), header)
        for expected, (name, array) in zip(types, arrays, strict=True):
            shape, dtype = types[expected]
            if name != expected or array.shape != tuple(shape) or array.dtype != np.dtype(dtype):
                raise ValueError(f"parameter {name}: {array.dtype}{array.shape} does not fit {dtype}{tuple(shape)}")
            written.result()
            data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            written = writer.submit(put, data, bytes(-array.nbytes % ALIGNMENT))
        written.result()
    return digest.hexdigest()


def read_header(path: Path) -> tuple[dict[str, dict], int]:
    """Return the entries of a safetensors file's header and where its data begins.

    Raises:
        UserError: the header is not one, or it does not fit the file's size.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise UserError(f"{path} is not a safetensors file or was cut short")
        text = stream.read(length)
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        ends = [_checked_end(entry, size) for entry in entries.values()]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise UserError(f"{path} has a broken safetensors header") from None
    if max(ends, default=0) != size - 8 - length:
        raise UserError(f"{path} was cut short or altered: its header does not fit its size")
    return entries, 8 + length


def _checked_end(entry: dict, size: int) -> int:
    """Return where a tensor's data ends, after checking that its shape, dtype and offsets agree."""
    shape, (begin, end) = entry["shape"], entry["data_offsets"]
    if not all(type(number) is int and 0 <= number <= size for number in (*shape, begin, end)):
        raise ValueError("a number is out of range")
    if end - begin != math.prod(shape) * DTYPES[entry["dtype"]].itemsize:
        raise ValueError("shape and offsets differ")
    return end


def map_parameters(path: Path) -> dict[str, np.ndarray]:
    """Map a parameter file: arrays that share the file's pages with every other process that maps it.

    The mapping is copy-on-write, so the file can't be changed through it.
    """
    entries, start = read_header(path)
    data = np.memmap(path, dtype=np.uint8, mode="c", offset=0)
    arrays = {}
    for name, entry in entries.items():
        if not name.startswith(PADDING):
            low, high = (start + offset for offset in entry["data_offsets"])
            arrays[name] = data[low:high].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return arrays
