"""Compile what training computes with, once for this processor: `python -m models.cpu.fast`."""

import shutil
import sys
from pathlib import Path
from typing import Any

import numba

from . import libraries

libraries.load()

from . import executor, memory  # noqa: E402, F401  (they are compiled when they are imported)

config: Any = numba.config
kept = Path(config.CACHE_DIR)
if kept.parent == Path(sys.prefix, "numba"):
    for folder in kept.parent.iterdir():
        if folder != kept:  # of other versions of the sources
            shutil.rmtree(folder)
