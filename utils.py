"""Errors that are shown to the user, and files that are written completely or not at all."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from os import PathLike
from pathlib import Path
from typing import BinaryIO, NoReturn

ROOT = Path(__file__).resolve().parent


class UserError(Exception):
    """An error that the user can correct; the message is one sentence that says how."""


def run(main: Callable[[], int | None]) -> NoReturn:
    """Exit with the status of a command's `main`; a UserError is printed and gives status 2."""
    # matplotlib keeps its list of fonts in the virtual environment, not in the home directory
    os.environ.setdefault("MPLCONFIGDIR", str(Path(sys.prefix) / "matplotlib"))
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(fail(str(error)))
    except BrokenPipeError:  # the reader of a pipe has ended, as in `verify.py | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def fail(message: str) -> int:
    """Print an error sentence to stderr and return exit status 2."""
    print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    return 2


@cache
def say_once(message: str) -> None:
    """Print a line to stderr, and not again in this process."""
    print(message, file=sys.stderr)


def write_atomically(path: str | PathLike, write: Callable[[BinaryIO], object]) -> None:
    """Replace the file at `path` by what `write` writes, or leave it unchanged after an error.

    Raises UserError when the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if not isinstance(error, OSError):
            raise
        reason = error.strerror
        if isinstance(error, FileExistsError):  # raised by mkdir where a file has the folder's name
            reason = f"{path.parent} is no folder"
        kept = "; the file that was there is untouched" if os.path.exists(path) else ""
        raise UserError(
            f"cannot save {path}: {reason}{kept}; free some space or choose another folder"
        ) from None
