"""Downloading of weights: resumed after a break, verified, and in the cache whole or not at all.

On its way a file is `NAME.part`, with the server's mark of its version in `NAME.part.version`. Of
two processes that want the same file, the second waits for the first (a lock on `.NAME.lock`).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from urllib.parse import unquote

import requests
from requests.exceptions import ChunkedEncodingError, ConnectionError, RequestException, Timeout
from tqdm import tqdm

from utils import UserError

from . import files

TIMEOUT = (10, 30)  # seconds to connect, and to wait for more bytes
PAUSES = (1, 2)  # seconds between one try and the next

_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype\s+html|html)", re.IGNORECASE)
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_CAUSE = re.compile(r"(?<=\] )[\w :-]+\w|timed out")  # what is for people in requests' messages


class _TryAgain(Exception):
    """A failure that another try may mend; the message says what happened."""


def fetch(url: str, sha256: str | None = None, size: int | None = None) -> Path:
    """The local copy of a weights file, downloaded unless the cache has it complete.

    The cache is the folder REPARAM_CACHE, else reparam-megengine in XDG_CACHE_HOME or ~/.cache.
    `sha256` (in hexadecimal) and `size` (in bytes) say what the file must be, in the cache too.
    Without both, a cut goes unnoticed when the server does not say how long the file is.

    Raises UserError when the file cannot be had; a broken download is never taken for it later.
    """
    path = _cache_path(url)
    try:
        if _is_complete(path, sha256, size):
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            if not _is_complete(path, sha256, size):  # else another process has downloaded it
                part = Path(f"{path}.part")
                _download(url, part, size)
                if sha256 and (found := files.sha256(part)) != sha256.lower():
                    _forget(part)
                    what = f"it has SHA-256 {found} instead of {sha256} and was deleted"
                    raise _error(url, f"{what}; check the URL and the sum")
                os.replace(part, path)
                _forget(part)
    except OSError as error:
        raise UserError(
            f"cannot save {url} as {path}: {error.strerror or error}; free some space, or set "
            "REPARAM_CACHE to another folder"
        ) from None
    return path


def _error(url: str, what: str) -> UserError:
    return UserError(f"cannot download {url}: {what}")


def _cache_path(url: str) -> Path:
    if not re.match(r"https?://[^/]", url, re.IGNORECASE):
        raise _error(url, "it is not a URL that begins with https:// or http://; give one")
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = os.environ.get("REPARAM_CACHE") or f"{caches}/reparam-megengine"
    name = unquote(re.split(r"[?#]", url)[0]).rpartition("/")[2]
    unique = hashlib.sha256(url.encode(errors="replace")).hexdigest()[:10]
    name = f"{unique}-{re.sub(r'[^A-Za-z0-9._-]', '_', name)[-100:]}"
    return Path(os.path.expanduser(folder), name)


def _is_complete(path: Path, sha256: str | None, size: int | None) -> bool:
    if not path.is_file() or size not in (None, path.stat().st_size):
        return False
    return sha256 is None or files.sha256(path) == sha256.lower()


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    Path(f"{part}.version").unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keeps other processes from the same download; the lock goes when the process does."""
    with open(path.with_name(f".{path.name}.lock"), "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that downloads {path.name}", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(url: str, part: Path, size: int | None) -> None:
    """Bring the part file to its full length, in several tries."""
    for pause in (0, *PAUSES):
        time.sleep(pause)
        try:
            return _try(url, part, size)
        except _TryAgain as error:
            problem = str(error)
        except (ConnectionError, Timeout, ChunkedEncodingError) as error:
            cause = _CAUSE.search(str(error))
            problem = f"the connection failed ({cause[0]})" if cause else "the connection broke"
        except (RequestException, ValueError) as error:
            raise _error(url, f"{error}; check the URL") from None
    raise _error(url, f"{problem} ({len(PAUSES) + 1} tries); check network and URL, and try again")


def _try(url: str, part: Path, size: int | None) -> None:
    start = part.stat().st_size if part.exists() else 0
    note = Path(f"{part}.version")
    known = note.read_text("latin-1") if note.exists() else ""
    headers = {"Accept-Encoding": "identity"}  # so that lengths and ranges are the file's
    if start and known and known.isprintable():
        headers |= {"Range": f"bytes={start}-", "If-Range": known}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        status, answer = response.status_code, response.headers
        if status == 429 or status >= 500:
            raise _TryAgain(f"the server answered {status} {response.reason}")
        if status not in (200, 206) and not (status == 416 and "Range" in headers):
            raise _error(url, f"the server answered {status} {response.reason}; check the URL")
        etag, span = answer.get("ETag", "W/"), _RANGE.fullmatch(answer.get("Content-Range", ""))
        # If-Range takes no weak ETag; and not every server heeds it, or sends the right range.
        version = answer.get("Last-Modified", "") if etag.startswith("W/") else etag
        fits = status == 206 and span and int(span[1]) == start and version in ("", known)
        if status != 200 and not fits:
            _forget(part)
            raise _TryAgain("the server did not send the part of the file that was asked for")
        length = answer.get("Content-Length", "") if status == 200 else span[2]
        body, head = response.iter_content(1 << 16), b""
        while len(head) < 1024 and (chunk := next(body, b"")):
            head += chunk
        if _PAGE.match(head) or "text/html" in answer.get("Content-Type", "").lower():
            raise _error(url, "the server sent a web page instead of a file; open it in a browser")
        total = int(length) if length.isdecimal() else size
        if size not in (None, total):
            raise _error(url, f"it has {total} bytes, but {size} were expected; check the URL")
        if status == 200:
            start = 0
            _forget(part)
            note.write_text(version, "latin-1")
        bar = {"desc": part.stem, "unit": "B", "unit_scale": True, "disable": None}
        with open(part, "ab") as file, tqdm(initial=start, total=total, **bar) as progress:
            for chunk in chain([head], body):
                file.write(chunk)
                start += len(chunk)
                progress.update(len(chunk))
                if total is not None and start > total:  # perhaps without end
                    break
            file.flush()
            os.fsync(file.fileno())
    if start == 0 or total not in (None, start):
        if start == 0 or start > total:
            _forget(part)
        raise _TryAgain(f"{start} bytes came instead of {'some' if total is None else total}")
