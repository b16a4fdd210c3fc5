"""The versions that decide the bits of a training's result."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib import metadata

from models import cpu, environment

import cv2
import megengine as mge
import numpy as np
import PIL


def versions() -> dict[str, str]:
    """Return name -> version of each library, and how and on which device it computes."""
    path, gpus = cpu.path(), environment.gpu_count()
    compiled: dict[str, str] = {}
    if path == "fast" and cpu.is_used():
        from models.cpu import fast  # it needs packages that may be missing

        path, compiled = ("fast", fast.versions()) if fast.available() else ("matmul", {})
    return {
        "python": platform.python_version(),
        "megengine": mge.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "pillow": PIL.__version__,
        "turbojpeg": _turbojpeg(),
        "MKL_DEBUG_CPU_TYPE": os.environ.get("MKL_DEBUG_CPU_TYPE", ""),
        "processor": platform.machine(),
        "device": os.environ.get("MGE_DEFAULT_DEVICE") or ("gpu" if gpus else "cpu"),
        "REPARAM_CPU": path,
        **compiled,
    }


def _turbojpeg() -> str:
    """Return the version of the package that decodes JPEGs; "" where it is missing."""
    with suppress(metadata.PackageNotFoundError):
        return metadata.version("turbojpeg")
    return ""
