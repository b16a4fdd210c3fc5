"""Keeping the remarks of image decoders away from the terminal."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_one_at_a_time = threading.Lock()


@contextmanager
def quiet() -> Iterator[None]:
    """Discard what the process writes to its standard error.

    libpng, libtiff and others write there without the name of the file, and what they remark on a
    file that they can decode is nothing to act upon.
    """
    with _one_at_a_time:
        try:
            kept = os.dup(2)
        except OSError:  # the process has no standard error
            yield
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)


@contextmanager
def audible() -> Iterator[None]:
    """Let what is written to standard error through, while other threads decode images."""
    with _one_at_a_time:
        yield
