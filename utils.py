"""What every command needs: the process environment, errors for people and arguments.

Import this first: it sets the environment that MegEngine reads when it is imported.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import numpy as np

ROOT = Path(__file__).resolve().parent


# ---------------------------------------------------------------- the process environment


def gpu_count() -> int:
    """Number of GPUs that CUDA's driver sees; MegEngine tells it too, but prints lines."""
    count = ctypes.c_int(0)
    with suppress(OSError):
        cuda = ctypes.CDLL("libcuda.so.1")
        if cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0:
            return count.value
    return 0


def processor_has(word: str) -> bool:
    """Whether /proc/cpuinfo names this feature, such as "avx512f", or vendor (Linux)."""
    with suppress(OSError):
        return word in Path("/proc/cpuinfo").read_text()
    return False


def _on_cpu() -> bool:
    """Whether MegEngine's device is a CPU: "cpu0", or "multithread2:0" for two threads."""
    return os.environ.get("MGE_DEFAULT_DEVICE", "").startswith(("cpu", "multithread"))


def set_process_environment() -> None:
    """Settings that must stand before `import megengine`; a value the user has set is kept.

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
    if _on_cpu():
        os.environ.setdefault("MGB_WORKER_MAX_SPIN", "1")
        os.environ.setdefault("RUNTIME_OVERRIDE_LOG_LEVEL", "3")
    os.environ.setdefault("MGE_FASTRUN_CACHE_TYPE", "MEMORY")
    os.environ.setdefault("MPLCONFIGDIR", str(Path(sys.prefix) / "matplotlib"))


set_process_environment()

# Importing MegEngine makes the processor flush subnormal numbers to zero, and NumPy then warns
# about it when it is first asked for a type's limits; ask before.
np.finfo(np.float32), np.finfo(np.float64)


# of glibc's malloc.h and Linux's mman.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8
_MADV_HUGEPAGE = 14
_HUGE_PAGE = 2 << 20


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


_PR_SET_TIMERSLACK = 29  # of Linux's prctl.h


def set_timer_slack(seconds: float) -> None:
    """How late this thread, and those it starts from now on, may wake from a timed wait (Linux).

    While MegEngine computes on a CPU, a thread of its own asks every 0.1 ms whether tensors can be
    released. That takes a quarter of a step's processor time in a virtual machine, and slows down
    the thread that computes: a step takes 1.6 times as long, twice on a single core. Started with
    a slack of some milliseconds, it asks as seldom, and holds the tensors for that much longer.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(round(seconds * 1e9)), 0, 0, 0)


if _on_cpu():
    keep_freed_memory()
    set_timer_slack(5e-3)


def peak_memory(process: int | str = "self") -> float:
    """The most memory that this process, or another one by its number (Linux), has had resident so
    far, in MB (2^20 bytes).
    """
    with suppress(OSError):  # getrusage would count what the parent had before exec
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS: in bytes


def available_memory() -> float:
    """Bytes that new processes can take without swapping (Linux); else infinite."""
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return float("inf")


# ---------------------------------------------------------------- errors for people


class UserError(Exception):
    """Something the user can put right; the message is one sentence that says how."""


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a command's main: a UserError is printed as one sentence and gives exit status 2."""
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(fail(str(error)))
    except BrokenPipeError:  # the reader of a pipe has left, as in `verify.py | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def fail(message: str) -> int:
    """Print an error sentence to stderr; returns exit status 2."""
    print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    return 2


# ---------------------------------------------------------------- arguments


class ArgumentParser(argparse.ArgumentParser):
    """argparse with one-sentence errors, and with defaults and examples in its help."""

    def __init__(self, description: str, examples: str, prog: str | None = None):
        super().__init__(
            prog=prog,
            description=description,
            epilog="examples:\n" + examples,
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """One sentence, exit status 2."""
        sys.exit(fail(f"{message} (see {self.prog} --help)"))


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=28, width=100)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if any(action.default is nothing for nothing in (None, False, argparse.SUPPRESS)):
            return action.help  # "(default: None)" says nothing
        return super()._get_help_string(action)


def number(kind: type, low: float, high: float = float("inf"), open_low: bool = False) -> Callable:
    """An argparse type: a finite int or float between `low` and `high`."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not (low < value if open_low else low <= value) or not value <= high:
            what = "a whole number" if kind is int else "a number"
            bounds = f"{'above' if open_low else 'of at least'} {low}"
            if high != float("inf"):
                bounds += f" and at most {high}"
            raise argparse.ArgumentTypeError(f"{text!r} is not {what} {bounds}")
        if value == float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
        return value

    return parse


def arch_name(text: str) -> str:
    """An argparse type: the canonical name of an architecture."""
    import models

    try:
        return models.canonical_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def arch_names(patterns: list[str]) -> list[str]:
    """Canonical names of architectures: each pattern is a name, a shell pattern or "all".

    Raises UserError for one that nothing matches.
    """
    import models

    names = {}  # in the order given, once each
    for pattern in patterns:
        matches = models.list_models("*" if pattern.lower() == "all" else pattern)
        if not matches:
            try:
                matches = [models.canonical_name(pattern)]
            except ValueError as error:
                raise UserError(f"argument --arch: {error}") from None
        names |= dict.fromkeys(matches)
    return list(names)
