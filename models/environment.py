"""The environment variables that MegEngine reads, and settings of the process for fast training.

Importing `models` sets the environment variables before it imports MegEngine. Whatever changes the
process itself is a function: commands and their workers call it, the user of a library need not.
"""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np

from . import gpus

# constants of glibc's malloc.h and Linux's mman.h and prctl.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8
_MADV_HUGEPAGE = 14
_HUGE_PAGE = 2 << 20
_PR_SET_TIMERSLACK = 29

_passed_over: gpus.GPU | None = None


def gpu_count() -> int:
    """Return how many GPUs MegEngine can compute on; 0 if its device is a CPU."""
    return 0 if on_cpu() else len(gpus.visible())


def unsupported_gpu() -> gpus.GPU | None:
    """Return the GPU in whose place `set_environment` has chosen the CPU, or None."""
    return _passed_over


def hide_unused_gpus(say: bool = True) -> None:
    """Hide the GPUs from this process where it computes on a CPU; say once on stderr why it does.

    Where there is none, or MegEngine computes on one, nothing happens. Call it before MegEngine
    computes anything, which would take a GPU wherever it is asked for any device, as when it writes
    .mge files. Importing `models` hides none, since others in the process may use them.
    """
    global _passed_over
    if on_cpu() and gpus.visible():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if _passed_over is not None and say:
        print(f"note: {gpus.refusal(_passed_over)}; computing on the CPU", file=sys.stderr)
    _passed_over = None


def processor_has(word: str) -> bool:
    """Return whether /proc/cpuinfo names a feature, such as "avx512f", or a vendor (Linux)."""
    with suppress(OSError):
        return word in Path("/proc/cpuinfo").read_text()
    return False


def on_cpu() -> bool:
    """Return whether MegEngine's device is a CPU: "cpu0", or "multithread2:0" for two threads."""
    return os.environ.get("MGE_DEFAULT_DEVICE", "").startswith(("cpu", "multithread"))


def check_device() -> None:
    """Raise ValueError where MGE_DEFAULT_DEVICE names a GPU and there is none."""
    device = os.environ.get("MGE_DEFAULT_DEVICE", "")
    if device.startswith("gpu") and not gpus.visible():
        raise ValueError(
            f"MGE_DEFAULT_DEVICE is {device!r}, but CUDA's driver shows no GPU; unset it, or set "
            "it to cpu0"
        )


def set_environment() -> None:
    """Set the variables that MegEngine reads when it is imported; values that are set are kept.

    - On AMD processors the MKL inside MegEngine takes its slowest path unless told to use AVX2,
      with which it computes 2.7 times the matrix products per second.
    - Without a GPU, naming the CPU as the device silences four lines about a missing CUDA driver;
      with one that MegEngine does not run on, it avoids MegEngine's error.
    - On a CPU, MegEngine's threads sleep at once when they have nothing to do. They would spin for
      up to 5 ms, which on one core is taken from the thread they wait for: a training step takes
      1.15 times the processor time. The log level, errors only, silences a warning about this.
    - MegEngine keeps its cache of kernel timings, which nothing here uses, in memory instead of in
      the home directory.
    """
    global _passed_over
    if processor_has("AuthenticAMD"):
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
    if "MGE_DEFAULT_DEVICE" not in os.environ:
        first = next(iter(gpus.visible()), None)  # MegEngine's default device
        if first is None or not first.is_supported:
            os.environ["MGE_DEFAULT_DEVICE"] = "cpu0"  # also for the processes that are started
            _passed_over = first
    if on_cpu():
        os.environ.setdefault("MGB_WORKER_MAX_SPIN", "1")
        os.environ.setdefault("RUNTIME_OVERRIDE_LOG_LEVEL", "3")
    os.environ.setdefault("MGE_FASTRUN_CACHE_TYPE", "MEMORY")
    # Importing MegEngine makes the processor flush subnormal numbers to zero. NumPy would warn of
    # that when first asked for the limits of a type, so it is asked before.
    np.finfo(np.float32), np.finfo(np.float64)


def tune_for_computing() -> None:
    """Set the allocator and the timers of this process as training on a CPU needs them.

    Call it before MegEngine computes anything, since its threads inherit the timers. Nothing
    happens if MegEngine's device is a GPU.
    """
    if on_cpu():
        keep_freed_memory()
        set_timer_slack(5e-3)


def keep_freed_memory() -> None:
    """Make the C library keep freed memory, in huge pages, for the next training step (Linux).

    MegEngine allocates and frees every activation in each step. Where page faults are slow, fresh
    pages of 4 KiB cost more than what is computed in them: a training step in a virtual machine
    took 2.6 times as long. Addresses for half of the machine's memory are reserved, but no memory.
    """
    with suppress(OSError, AttributeError, ValueError):
        libc = ctypes.CDLL(None)
        libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
        libc.free.argtypes = [ctypes.c_void_p]
        libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        libc.mallopt(_M_ARENA_MAX, 1)  # one heap for all threads
        libc.mallopt(_M_MMAP_MAX, 0)  # no blocks outside of the heap
        libc.mallopt(_M_TRIM_THRESHOLD, -1)  # the heap never shrinks
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
        block = libc.malloc(size)
        if block is not None:
            start = -(-block // _HUGE_PAGE) * _HUGE_PAGE
            libc.madvise(start, block + size - start, _MADV_HUGEPAGE)
            libc.free(block)


def return_freed_memory() -> None:
    """Make the C library return large freed blocks to the system at once (Linux).

    It otherwise keeps them, and converting a large network would peak at twice the memory. Not for
    training, which allocates the same blocks again and again and would take up to twice the time.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 1 << 16)
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 18)  # from 256 KiB on
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 18)
        libc.malloc_trim(0)  # or what keep_freed_memory has reserved is used first


def set_timer_slack(seconds: float) -> None:
    """Set how late this thread, and those it starts from now on, may wake from a wait (Linux).

    While MegEngine computes on a CPU, one of its threads polls every 0.1 ms for tensors to release.
    In a virtual machine that takes a quarter of a step's processor time and slows down the thread
    that computes: a step takes 1.6 times as long, twice as long on a single core. With a slack of
    some milliseconds the thread polls that seldom, and tensors are held for that much longer.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(round(seconds * 1e9)), 0, 0, 0)


set_environment()
