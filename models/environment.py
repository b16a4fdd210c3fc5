"""What MegEngine reads when it is imported, and how this process keeps its memory while it trains.

Importing `models` sets the environment variables, before MegEngine is imported. Everything that
changes the process itself is a call: commands and their workers make it, a library's user need not.
"""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np

# of glibc's malloc.h and Linux's mman.h and prctl.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8
_MADV_HUGEPAGE = 14
_HUGE_PAGE = 2 << 20
_PR_SET_TIMERSLACK = 29


def gpu_count() -> int:
    """Return the number of GPUs that CUDA's driver sees; MegEngine would print lines about it."""
    count = ctypes.c_int(0)
    with suppress(OSError):
        cuda = ctypes.CDLL("libcuda.so.1")
        if cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0:
            return count.value
    return 0


def processor_has(word: str) -> bool:
    """Return whether /proc/cpuinfo names a feature, such as "avx512f", or a vendor (Linux)."""
    with suppress(OSError):
        return word in Path("/proc/cpuinfo").read_text()
    return False


def on_cpu() -> bool:
    """Return whether MegEngine's device is a CPU: "cpu0", or "multithread2:0" for two threads."""
    return os.environ.get("MGE_DEFAULT_DEVICE", "").startswith(("cpu", "multithread"))


def set_environment() -> None:
    """Set the variables that must stand before `import megengine`; a value of the user's is kept.

    - On AMD processors the MKL inside MegEngine takes its slowest path unless told to use AVX2:
      2.7 times the matrix products per second.
    - Without a GPU, naming the CPU as the device silences four lines about a missing CUDA driver.
    - On a CPU, MegEngine's threads are told to sleep at once where they have nothing to do.
      They otherwise spin for up to 5 ms, which on one core is taken from the thread they wait for:
      a training step takes 1.15 times the processor time. The log level, errors only, silences
      the warning that this is set.
    - MegEngine otherwise writes a cache of kernel timings, which nothing here uses, to the home;
      matplotlib keeps its list of fonts there too, and gets a place in the virtual environment.
    """
    if processor_has("AuthenticAMD"):
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
    if "MGE_DEFAULT_DEVICE" not in os.environ and gpu_count() == 0:
        os.environ["MGE_DEFAULT_DEVICE"] = "cpu0"
    if on_cpu():
        os.environ.setdefault("MGB_WORKER_MAX_SPIN", "1")
        os.environ.setdefault("RUNTIME_OVERRIDE_LOG_LEVEL", "3")
    os.environ.setdefault("MGE_FASTRUN_CACHE_TYPE", "MEMORY")
    os.environ.setdefault("MPLCONFIGDIR", str(Path(sys.prefix) / "matplotlib"))
    # Importing MegEngine makes the processor flush subnormal numbers to zero, and NumPy then warns
    # about it when it is first asked for a type's limits; it is asked before.
    np.finfo(np.float32), np.finfo(np.float64)


def tune_for_training() -> None:
    """Set the allocator and the timers of this process as training on a CPU needs them.

    To be called before MegEngine computes anything, since its threads inherit the timers. Nothing
    happens where MegEngine's device is a GPU.
    """
    if on_cpu():
        keep_freed_memory()
        set_timer_slack(5e-3)


def keep_freed_memory() -> None:
    """Make the C library keep what is freed, in huge pages, for the next step of training (Linux).

    MegEngine takes and frees every activation anew. Fresh pages of 4 KiB cost more than what is
    computed in them where a page fault is slow: a training step in a virtual machine took 2.6
    times as long. Up to half of the machine's memory is reserved for this, none of it taken.
    """
    with suppress(OSError, AttributeError, ValueError):
        libc = ctypes.CDLL(None)
        libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
        libc.free.argtypes = [ctypes.c_void_p]
        libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        libc.mallopt(_M_ARENA_MAX, 1)  # one heap for all threads
        libc.mallopt(_M_MMAP_MAX, 0)  # and nothing beside it
        libc.mallopt(_M_TRIM_THRESHOLD, -1)  # which never shrinks
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
        block = libc.malloc(size)
        if block is not None:
            start = -(-block // _HUGE_PAGE) * _HUGE_PAGE
            libc.madvise(start, block + size - start, _MADV_HUGEPAGE)
            libc.free(block)


def return_freed_memory() -> None:
    """Make the C library give large freed blocks back to the system at once (Linux).

    It otherwise keeps them, and converting a large network would peak at twice the memory. Training
    takes the same blocks again and again, and pays with up to twice the time.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 1 << 16)
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 18)  # from 256 KiB on
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 18)
        libc.malloc_trim(0)  # what keep_freed_memory has reserved would be taken first


def set_timer_slack(seconds: float) -> None:
    """Set how late this thread, and those it starts from now on, may wake from a wait (Linux).

    While MegEngine computes on a CPU, a thread of its own asks every 0.1 ms whether tensors can be
    released. That takes a quarter of a step's processor time in a virtual machine, and slows down
    the thread that computes: a step takes 1.6 times as long, twice on a single core. Started with
    a slack of some milliseconds, it asks as seldom, and holds the tensors for that much longer.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(round(seconds * 1e9)), 0, 0, 0)


set_environment()
