"""The two libraries that the fast path calls, both from wheels: oneDNN, and GNU's OpenMP for it."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import sys
import tempfile
from fnmatch import fnmatch
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from ... import environment


class NotAvailable(Exception):
    """The fast path cannot be used here; the message is the reason."""


@cache
def load() -> ctypes.CDLL:
    """Load oneDNN and return it. Raises NotAvailable when something that it needs is missing.

    oneDNN and numba need GNU's OpenMP under its plain name, libgomp.so.1, which the system may not
    have. scikit-learn's wheel brings it under a name of its own.
    """
    configure_numba()
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        raise NotAvailable("the libraries are made for Linux on x86-64")
    if not environment.processor_has("avx2"):
        raise NotAvailable("this processor has no AVX2")
    library = _file_of("onednn-cpu-gomp", "libdnnl.so.3")
    # By default, threads that wait spin for milliseconds, and take the time of those that decode
    # images. Here they sleep instead, but only after 10,000 turns, as most waits between the
    # records of a program are shorter than it takes to fall asleep: a step of MobileOneS0 takes
    # 0.31 instead of 0.37 s, one of RepViTM0_6 0.17 instead of 0.21 s (128 images of 24 px, total
    # stride of 16, AMD EPYC, 2 cores).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        _load_openmp()
        onednn = ctypes.CDLL(str(library))
    except OSError as error:
        raise NotAvailable(f"oneDNN cannot be loaded: {error}") from None
    import numba

    config: Any = numba.config
    if not Path(config.CACHE_DIR).is_dir():
        print(
            "compiling the training loops for this processor, once: about a minute",
            file=sys.stderr,
        )
    return onednn


def configure_numba() -> None:
    """Let numba use the same OpenMP, and keep what it compiles.

    numba looks when a function is decorated, so this comes first. Raises NotAvailable without
    numba, where it is not to compile, or without a folder.
    """
    try:
        import numba
    except Exception as error:  # of many kinds, where it does not fit another package
        raise NotAvailable(f"numba cannot be imported: {error}") from None

    config: Any = numba.config
    if config.DISABLE_JIT:
        raise NotAvailable("NUMBA_DISABLE_JIT is set")
    config.THREADING_LAYER = "omp"
    config.CACHE_DIR = str(_cache_folder())


def _cache_folder() -> Path:
    """Return where numba keeps what it compiles: in the virtual environment, or else the user's.

    numba compiles again by itself for another processor. The folder is named by the sources, since
    a function is not compiled again when another one that it calls has changed; it is in
    NUMBA_CACHE_DIR if that is given. Where the environment cannot be written, a folder of the user
    takes its place, with what the environment has, as numba reads only what it can write. Raises
    NotAvailable when there is no such folder.
    """
    sources = [file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py"))]
    digest = hashlib.sha256(b"".join(sources)).hexdigest()[:12]
    given = os.environ.get("NUMBA_CACHE_DIR")
    if given:
        return Path(given, digest)
    name = Path("numba", digest)
    folder = sys.prefix / name
    if os.access(next(path for path in (folder, *folder.parents) if path.exists()), os.W_OK):
        return folder
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        users = caches / "reparam-megengine" / name
        users.parent.mkdir(parents=True, exist_ok=True)
        if folder.is_dir() and not users.is_dir():
            with tempfile.TemporaryDirectory(dir=users.parent) as copy:
                shutil.copytree(folder, copy, dirs_exist_ok=True)
                with contextlib.suppress(OSError):  # another process was first
                    os.replace(copy, users)
    except (OSError, RuntimeError) as error:
        raise NotAvailable(
            f"there is no folder for compiled code ({error}); "
            "set XDG_CACHE_HOME to one that can be written"
        ) from None
    if not os.access(users.parent, os.W_OK):
        raise NotAvailable(
            f"{users.parent} cannot be written; set XDG_CACHE_HOME to another folder"
        )
    return users


def set_threads() -> None:
    """Let what is created and run from now on in this thread use `threads` threads.

    Other libraries set the number too: numba does when it runs its first loop in parallel.
    """
    import numba

    config: Any = numba.config
    _openmp().omp_set_num_threads(threads())
    numba.set_num_threads(min(threads(), config.NUMBA_NUM_THREADS))


@cache
def _openmp() -> ctypes.CDLL:
    return ctypes.CDLL("libgomp.so.1")


@cache
def threads() -> int:
    """Return the number of threads to compute with: OMP_NUM_THREADS, or all cores.

    The cores are those that this process may use. Results have the same bits for the same number.
    """
    count = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(count) if count.isdigit() and int(count) else len(os.sched_getaffinity(0))


@cache
def has_bfloat16() -> bool:
    """Return whether the processor has instructions for bfloat16."""
    return environment.processor_has("avx512_bf16")


def versions() -> dict[str, str]:
    """Return what decides the bits of a result: libraries, instruction set, number of threads."""
    packages = {name: metadata.version(name) for name in ("numba", "llvmlite", "onednn-cpu-gomp")}
    wide = environment.processor_has("avx512f")
    found = {"instructions": "avx512" if wide else "avx2", "bfloat16": str(has_bfloat16())}
    return {**packages, **found, "threads": str(threads())}


def _file_of(package: str, name: str) -> Path:
    """Return a package's file whose name matches a pattern. Raises NotAvailable without one."""
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        raise NotAvailable(f"{package} is not installed") from None
    for file in files:
        if fnmatch(file.name, name):
            return Path(file.locate()).resolve()
    raise NotAvailable(f"{package} has no {name}")


def _load_openmp() -> None:
    """Make libgomp.so.1 known to the dynamic linker: the one of scikit-learn's wheel.

    The linker compares the names that libraries give themselves. A copy in which this name is the
    plain one is loaded; the copy itself is not needed afterwards.
    """
    source = _file_of("scikit-learn", "libgomp*")
    name = source.name.encode() + b"\0"
    content = source.read_bytes()
    if content.count(name) != 1:
        raise NotAvailable(f"{source.name} does not have its name in it once")
    content = content.replace(name, b"libgomp.so.1".ljust(len(name), b"\0"))
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        file.write(content)
        file.flush()
        ctypes.CDLL(file.name, ctypes.RTLD_GLOBAL)
