"""Compile what training computes with, once for this processor: `python -m models.cpu.fast`."""

import shutil
import sys
from pathlib import Path
from typing import Any

from . import available

if available():  # compiles it
    import numba

    config: Any = numba.config
    kept = Path(config.CACHE_DIR)
    if kept.parent == Path(sys.prefix, "numba"):
        for folder in kept.parent.iterdir():
            if folder != kept:  # of other versions of the sources
                shutil.rmtree(folder, ignore_errors=True)
