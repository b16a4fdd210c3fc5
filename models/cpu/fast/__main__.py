"""Compile what training computes with, once for this processor: `python -m models.cpu.fast`."""

from . import libraries

libraries.load()

from . import executor, memory  # noqa: E402, F401  (they are compiled when they are imported)
