"""A look at a shared library before it is loaded: the system's loader dies of one that was cut short."""

from __future__ import annotations

import struct
from pathlib import Path

ELF64 = b"\x7fELF\x02\x01"  # of 64 bits, little-endian
HEADER, SEGMENT = struct.Struct("<16xHHIQQQIHHHHHH"), struct.Struct("<IIQQQQQQ")


def is_whole(path: Path) -> bool:
    """Tell whether all segments that an ELF library names lie inside of the file; other formats are not looked at.

    Source: System V ABI, chapter 4, for 64 bits.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        if stream.read(len(ELF64)) != ELF64:
            return True
        stream.seek(0)
        if len(header := stream.read(HEADER.size)) < HEADER.size:
            return False
        *_, offset, _, _, _, length, count, _, _, _ = HEADER.unpack(header)
        if length != SEGMENT.size or offset + count * length > size:
            return False
        stream.seek(offset)
        segments = [SEGMENT.unpack(stream.read(length)) for _ in range(count)]
    return all(segment[2] + segment[5] <= size for segment in segments)
