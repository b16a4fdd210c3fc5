"""The versions that decide the bits of a training's result."""

from __future__ import annotations

import os
import platform

from models import cpu

import cv2
import megengine as mge
import numpy as np


def versions() -> dict[str, str]:
    """Return name -> version of each library, and how and on which processor it computes."""
    path = cpu.path()
    compiled: dict[str, str] = {}
    if path == "fast" and cpu.is_used():
        from models.cpu import fast  # it needs packages that may be missing

        path, compiled = ("fast", fast.versions()) if fast.available() else ("matmul", {})
    return {
        "python": platform.python_version(),
        "megengine": mge.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "MKL_DEBUG_CPU_TYPE": os.environ.get("MKL_DEBUG_CPU_TYPE", ""),
        "processor": platform.machine(),
        "REPARAM_CPU": path,
        **compiled,
    }
