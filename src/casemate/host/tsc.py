"""How fast this host's time-stamp counter runs; emulated guests see the same counter and are told.

A guest that has to find out by itself compares the counter with an emulated timer; on a busy host it now and then
measures a fraction of the truth (340 MHz instead of 2596 was seen) and its clock then runs several times too fast.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import platform
import time
from collections.abc import Callable
from dataclasses import replace

from casemate.host.hypervisor import MachineSpec

_READ = bytes.fromhex("0f31" "48c1e220" "4809d0" "c3")  # rdtsc; shl rdx, 32; or rax, rdx; ret
_APART = 0.05
_CLOSE_NS = 5_000
_ATTEMPTS = 200


@functools.cache
def tsc_khz() -> int | None:
    """The counter's frequency in kHz, to a few parts in 10000; None where it cannot be measured. Takes 50 ms once."""
    if platform.machine() != "x86_64":
        return None
    try:
        code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return None  # a system that forbids generated code
    code.write(_READ)
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    first = _sample(read)
    time.sleep(_APART)
    second = _sample(read)
    if first is None or second is None or second[0] <= first[0] or second[1] <= first[1]:
        return None
    return round((second[1] - first[1]) * 1_000_000 / (second[0] - first[0]))


def _sample(read: Callable[[], int]) -> tuple[int, int] | None:
    """The clock in nanoseconds and the counter at the same moment: a pair that nothing came between."""
    for _attempt in range(_ATTEMPTS):
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        counter = read()
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        if after - before < _CLOSE_NS:
            return (before + after) // 2, counter
    return None


def with_known_frequency(spec: MachineSpec) -> MachineSpec:
    """Tell an emulated machine the frequency of its time stamp counter: it would measure it wrongly on a busy host."""
    khz = tsc_khz() if spec.acceleration == "tcg" else None
    return spec if khz is None else replace(spec, cmdline=f"{spec.cmdline} tsc_early_khz={khz}".strip())
