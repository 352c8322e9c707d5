"""Architectures of NVIDIA GPUs, and the one of this machine, asked of the driver's library alone."""

from __future__ import annotations

import ctypes

ARCHS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90")
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h
DRIVERS = ("libcuda.so.1", "nvcuda.dll")


def _driver() -> ctypes.CDLL | None:
    for name in DRIVERS:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _first() -> tuple[ctypes.CDLL, ctypes.c_int] | None:
    """Return driver and number of the first GPU."""
    driver, device = _driver(), ctypes.c_int()
    if driver is None or driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    return driver, device


def present_arch() -> str | None:
    """Return the architecture of the first GPU, as in "sm_90", or None where there is no GPU or no driver."""
    found = _first()
    if found is None:
        return None
    driver, device = found
    value, version = ctypes.c_int(), ""
    for attribute in (MAJOR, MINOR):
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return None
        version += str(value.value)
    return f"sm_{version}"


def present_name() -> str | None:
    """Return the name of the first GPU, or None where there is none."""
    found, name = _first(), ctypes.create_string_buffer(100)
    if found is None or found[0].cuDeviceGetName(name, len(name), found[1]):
        return None
    return name.value.decode()


def runs_on(built: str, present: str) -> bool:
    """Tell whether machine code for one architecture runs on a GPU of another: within a generation, on no older one.

    Source: CUDA C++ Programming Guide, Binary Compatibility.
    """
    (major, minor), (other, newest) = ((arch[3:-1], int(arch[-1])) for arch in (built, present))
    return major == other and minor <= newest


def has_bfloat16(arch: str) -> bool:
    """Tell whether tensor cores multiply bfloat16: from compute capability 8.0 on."""
    return int(arch[3:]) >= 80


def nearest_arch(present: str) -> str | None:
    """Return the newest of ``ARCHS`` whose code runs on a GPU of the architecture ``present``."""
    return max((arch for arch in ARCHS if runs_on(arch, present)), default=None)
