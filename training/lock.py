"""Exclusive use of a file by a process, released by the system however the process ends."""

from __future__ import annotations

import fcntl
import os
from typing import IO

_held: dict[tuple[int, int], IO] = {}  # device and inode -> file; kept open, as closing it unlocks


def acquire(file: IO) -> bool:
    """Lock an open file for this process until it ends; return False if another one holds it.

    A file system without locks refuses nobody.
    """
    status = os.fstat(file.fileno())
    key = status.st_dev, status.st_ino
    if key not in _held:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # ENOLCK or the like
            return True
        _held[key] = file
    return True
