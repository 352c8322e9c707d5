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


def present_arch() -> str | None:
    """Return the architecture of the first GPU, as in "sm_90", or None where there is no GPU or no driver."""
    driver = _driver()
    device, value = ctypes.c_int(), ctypes.c_int()
    if driver is None or driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    version = ""
    for attribute in (MAJOR, MINOR):
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return None
        version += str(value.value)
    return f"sm_{version}"


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
