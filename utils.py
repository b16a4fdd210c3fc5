"""Errors that are shown to the user, and files that are written completely or not at all."""

from __future__ import annotations

import codecs
import errno
import fcntl
import json
import math
import os
import re
import reprlib
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TextIO

ROOT = Path(__file__).resolve().parent

_LONGEST = 2000  # characters of a message
# errors of the system about a file that the user has named, wherever it is opened first
_ABOUT_FILES = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS, errno.EIO)

# a program for `python -c`: runs the module that its second argument names, found in the folder
# that its first one names. With `python -m`, files in the working directory would come first.
_RUN_MODULE = (
    "import sys; sys.path[0] = sys.argv[1]; del sys.argv[:2]; "
    "import runpy; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)


def _visible(text: str) -> str:
    """Return a text on one line: what cannot be printed as \\n or \\u200b, bytes as \\xe9."""
    return "".join(
        c
        if c.isprintable()
        else f"\\x{ord(c) & 0xFF:02x}"
        if "\udc80" <= c <= "\udcff"  # a byte of a file's name that is not UTF-8
        else ascii(c)[1:-1]
        for c in text
    )


def _escape(error: UnicodeError) -> tuple[str, int]:
    """Replace what a stream cannot encode: a byte by \\xe9, a letter by \\u4e2d."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    escaped = (_visible(c) if not c.isprintable() else ascii(c)[1:-1] for c in text)
    return "".join(escaped), error.end


codecs.register_error("escaped", _escape)  # for text that may hold names of files


class UserError(Exception):
    """An error that the user can correct; the message is one sentence that says how.

    What it quotes may come from a file of anyone's: line ends, control characters and names in
    other encodings are escaped, and the end of a very long message is left out.
    """

    def __init__(self, message: str):
        super().__init__(_visible(message)[:_LONGEST])


def run(main: Callable[[], int | None]) -> NoReturn:
    """Exit with the status of a command's `main`; a UserError is printed and gives status 2."""
    # matplotlib keeps its list of fonts in the virtual environment, else in the home directory
    if os.access(sys.prefix, os.W_OK):
        os.environ.setdefault("MPLCONFIGDIR", str(Path(sys.prefix) / "matplotlib"))
    _open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names of files may be in any encoding
            stream.reconfigure(errors="escaped")
    status: object
    try:
        status = main()
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            status = status or 1  # of a run that has saved because of it, and says so
    except SystemExit as leaving:  # of the parser
        status = leaving.code
    except UserError as error:
        status = fail(str(error))
    except BrokenPipeError:  # the reader of a pipe has ended, as in `verify.py | head`
        status = 1
    except KeyboardInterrupt:
        status = 130
    except OSError as error:
        if error.errno in _ABOUT_FILES and error.filename is not None:
            status = fail(f"{shown(error.filename)}: {error.strerror}; give another file or folder")
        elif _is_unwritable(sys.stdout, "\n"):
            status = fail(f"cannot write to the standard output: {error.strerror}")
        else:
            raise
    if _is_unwritable(sys.stdout):  # or Python would try once more, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def fail(message: str) -> int:
    """Print an error sentence to stderr and return exit status 2."""
    with suppress(OSError):
        # in one piece also where Python's output is unbuffered, beside that of other workers
        sys.stderr.write(f"{Path(sys.argv[0]).name}: error: {message}\n")
    return 2


def shown(name: str | PathLike) -> str:
    """Return a file's name as it can be printed: on one line, and in any encoding.

    Bytes that are not UTF-8 are written as \\xe9, and characters that cannot be seen as \\n.
    """
    return _visible(os.fsdecode(name))


def brief(value: Any) -> str:
    """Return a value from a file as a short text for a message, whatever the file holds."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return f"a {type(value).__name__} of too many digits"


def module_command(module: str, *options: str) -> list[str]:
    """Return the start of a command line that runs a module of this project, as `python -m` does.

    Unlike there, no file in the working directory is imported. `options` are Python's own.
    """
    return [sys.executable, *options, "-c", _RUN_MODULE, str(ROOT), module]


@cache
def say_once(message: str) -> None:
    """Print a line to stderr, and not again in this process."""
    print(_visible(message), file=sys.stderr)


def text_of(content: bytes) -> str:
    """Return the text in a file's content: UTF-8, or UTF-16 that begins with its mark.

    Spreadsheets write both, UTF-8 with a mark too. Bytes that are no UTF-8 become surrogates.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace")
    return content.decode("utf-8-sig", errors="surrogateescape")


def json_text(value: Any, ensure_ascii: bool = True) -> str:
    """Return indented JSON, with null for numbers that are not finite, which JSON lacks."""
    return json.dumps(_finite(value), indent=2, ensure_ascii=ensure_ascii)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def assert_other_file(source: Any, target: str | PathLike, flag: str) -> None:
    """Raise UserError where writing `target` would replace the file that it is made from.

    Args:
        source: name of that file, or None; a URL, what is in an archive, or the name of something
            else is no file.
        target: file to write.
        flag: flag that gives another name, for the message.
    """
    with suppress(OSError):  # one of the two is no file
        if isinstance(source, str | PathLike) and os.path.samefile(source, target):
            raise UserError(f"{target} is the file to read; give another name by {flag}")


def assert_writable(path: str | PathLike, advice: str | None = None) -> None:
    """Raise UserError where `write_atomically` could not write a file, before the work for it.

    The message ends with `advice` (default: to give another name or folder).
    """
    folder = _folder_above(Path(path), advice)
    if not os.access(folder, os.W_OK):
        advice = advice or "choose another folder"
        raise UserError(f"cannot save {path}: {folder} is not writable; {advice}")


def _folder_above(path: Path, advice: str | None = None) -> Path:
    """Return the folder nearest to a file that is there already.

    Raises UserError where the file's name is that of something else, or a file is in its way.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # a folder or a device
        advice = advice or "give another name"
        raise UserError(f"cannot save {path}: it is no regular file; {advice}")
    advice = advice or "choose another folder"
    try:
        folder = path.absolute().parent
    except OSError as error:  # the working directory has been removed
        raise UserError(f"cannot save {path}: {error.strerror}; {advice}") from None
    while not os.path.lexists(folder):
        folder = folder.parent
    if not os.path.isdir(folder):
        raise UserError(f"cannot save {path}: {folder} is no folder; {advice}")
    return folder


def write_atomically(path: str | PathLike, write: Callable[[BinaryIO], object]) -> None:
    """Replace the file at `path` by what `write` writes, or leave it unchanged after an error.

    Raises UserError when the file cannot be written.
    """
    path = Path(path)
    _folder_above(path)
    temporary = path.with_name(f".{path.name}.{_host()}.{os.getpid()}.tmp")
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
        kept = "; the file that was there is untouched" if os.path.exists(path) else ""
        advice = (
            "give a shorter name"
            if error.errno == errno.ENAMETOOLONG
            else "free some space or choose another folder"
        )
        raise UserError(f"cannot save {path}: {error.strerror}{kept}; {advice}") from None


def cache_folder() -> Path:
    """Return the folder for what can be made or downloaded again.

    It is REPARAM_CACHE, else reparam-megengine in XDG_CACHE_HOME or ~/.cache.
    """
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = os.environ.get("REPARAM_CACHE") or f"{caches}/reparam-megengine"
    return Path(os.path.expanduser(folder))


@contextmanager
def locked(path: Path, action: str) -> Iterator[None]:
    """Keep other processes from the same work on a file, waiting for one that is at it.

    `action` continues "another process that ..."; the system frees the lock of a dead process.
    """
    with open(path.with_name(f".{path.name}.lock"), "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that {action} {path.name}", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def remove_temporary_files(folder: Path) -> list[Path]:
    """Remove what `write_atomically` left in a folder when its process was killed.

    Files of processes that still run, and of other hosts, stay. Returns the files removed.
    """
    removed = []
    for file in folder.glob(".*.tmp"):
        match = re.fullmatch(rf"\..+\.{re.escape(_host())}\.(\d+)\.tmp", file.name)
        if match and not _is_running(int(match[1])):
            with suppress(OSError):
                file.unlink()
                removed.append(file)
    return removed


def _host() -> str:
    return socket.gethostname().replace("/", "_")


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def _open_standard_streams() -> None:
    """Make printing safe: a stream that is closed, as after `>&-`, is opened to nowhere.

    Otherwise the next file to be opened would get the number of the stream.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        with suppress(OSError):
            os.fstat(number)
            continue
        os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
        if getattr(sys, name) is None:
            mode = "r" if number == 0 else "w"
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115


def _is_unwritable(stream: TextIO, more: str = "") -> bool:
    """Return whether what is left in a stream's buffer, and `more`, cannot be written."""
    try:
        stream.write(more)
        stream.flush()
    except OSError:
        return True
    return False
