"""The GPUs of this machine, and which of them MegEngine can use.

A process that has used CUDA's driver leaves those that it forks without CUDA. So a child process
asks the driver, and the process that imports this module stays free to start others.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from functools import cache
from typing import NamedTuple

# The compute capabilities that the wheel of MegEngine 1.13.0 accepts; it refuses all others, even
# where the driver could compile its kernels for them.
SUPPORTED = ("5.2", "6.0", "6.1", "7.0", "7.5")

# Prints [[name, compute capability], ...]. 75 and 76 are cuDeviceGetAttribute's numbers for
# COMPUTE_CAPABILITY_MAJOR and _MINOR.
_ASK_THE_DRIVER = """
import ctypes, json
cuda, number, devices = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), []
def value(function, *arguments):
    if function(ctypes.byref(number), *arguments):
        raise SystemExit(1)
    return number.value
if cuda.cuInit(0):
    raise SystemExit(1)
for i in range(value(cuda.cuDeviceGetCount)):
    device, name = value(cuda.cuDeviceGet, i), ctypes.create_string_buffer(256)
    cuda.cuDeviceGetName(name, 256, device)
    major, minor = (value(cuda.cuDeviceGetAttribute, a, device) for a in (75, 76))
    devices.append([name.value.decode(errors="replace"), f"{major}.{minor}"])
print(json.dumps(devices))
"""


class GPU(NamedTuple):
    """A GPU: its name, and its compute capability such as "7.5"."""

    name: str
    capability: str

    @property
    def is_supported(self) -> bool:
        """Whether MegEngine's wheel runs on it."""
        return self.capability in SUPPORTED

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability})"


@cache
def visible() -> tuple[GPU, ...]:
    """Return the GPUs that CUDA's driver shows, by CUDA_VISIBLE_DEVICES; none without a driver."""
    try:
        ctypes.CDLL("libcuda.so.1")  # loading it uses no GPU
        child = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _ASK_THE_DRIVER],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            start_new_session=True,  # Ctrl-C is for the parent
            timeout=60,
            check=True,
        )
        return tuple(GPU(*device) for device in json.loads(child.stdout))
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()


# the end of a sentence that refuses to train on a GPU
OTHER_DEVICES = "; set MGE_DEFAULT_DEVICE=cpu0 to train on the CPU"


def refusal(gpu: GPU) -> str:
    """Return the sentence, without its end, that says that MegEngine does not run on `gpu`."""
    return (
        f"MegEngine's wheel does not run on this machine's GPU, {gpu}, but on compute capability "
        f"{', '.join(SUPPORTED[:-1])} and {SUPPORTED[-1]} (Maxwell to Turing)"
    )
