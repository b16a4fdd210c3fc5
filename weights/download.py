"""Downloading of weights: resumed after a break, and in the cache completely or not at all.

An unfinished download is `NAME.part`, with the server's identifier of the file's version (its ETag
or date) in `NAME.part.version`. When two processes want the same file, the second waits for the
first (a lock on `.NAME.lock`).
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from itertools import chain
from pathlib import Path
from urllib.parse import unquote

import requests
from requests.exceptions import ChunkedEncodingError, ConnectionError, RequestException, Timeout
from tqdm import tqdm

from utils import UserError, cache_folder, locked

from . import formats
from .files import sha256

TIMEOUT = (10, 30)  # seconds to connect, and to wait for more bytes
PAUSES = (1, 2)  # seconds between one try and the next

_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_CAUSE = re.compile(r"(?<=\] )[\w :-]+\w|timed out")  # the readable part of requests' messages


class _TryAgain(Exception):
    """A failure after which another try may succeed; the message says what happened."""


def fetch(url: str, known_sha256: str = "") -> Path:
    """Return the local copy of the file at a URL, downloaded unless the cache has it.

    A download whose SHA-256 does not begin with `known_sha256` is refused and not kept.
    The cache is the folder REPARAM_CACHE, else reparam-megengine in XDG_CACHE_HOME or ~/.cache.
    A connection that breaks goes unnoticed only where the server does not say how long the file is;
    the reader of the file then reports that it is truncated.

    Raises UserError when the download fails; what has arrived is used only to resume it.
    """
    path = _cache_path(url)
    try:
        if path.is_file():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path, "downloads"):
            if not path.is_file():  # else another process has downloaded it
                part = Path(f"{path}.part")
                _download(url, part)
                _check(url, part, known_sha256)
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
    name = unquote(re.split(r"[?#]", url)[0]).rpartition("/")[2]
    unique = hashlib.sha256(url.encode(errors="replace")).hexdigest()[:10]
    name = f"{unique}-{re.sub(r'[^A-Za-z0-9._-]', '_', name)[-100:]}"
    return cache_folder() / name


def _check(url: str, part: Path, known_sha256: str) -> None:
    """Remove a part file and raise UserError unless its SHA-256 begins as it should."""
    found = sha256(part)[: len(known_sha256)] if known_sha256 else ""
    if found != known_sha256:
        _forget(part)
        raise _error(
            url,
            f"what came is not the published file, as its SHA-256 begins with {found} instead of "
            f"{known_sha256}; try again, or over another network",
        )


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    Path(f"{part}.version").unlink(missing_ok=True)


def _download(url: str, part: Path) -> None:
    """Download the part file to its full length, in several tries."""
    for pause in (0, *PAUSES):
        time.sleep(pause)
        try:
            return _try(url, part)
        except _TryAgain as error:
            problem = str(error)
        except (ConnectionError, Timeout, ChunkedEncodingError) as error:
            cause = _CAUSE.search(str(error))
            problem = f"the connection failed ({cause[0]})" if cause else "the connection broke"
        except (RequestException, ValueError) as error:
            raise _error(url, f"{error}; check the URL") from None
    raise _error(url, f"{problem} ({len(PAUSES) + 1} tries); check network and URL, and try again")


def _try(url: str, part: Path) -> None:
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
        continues = span is not None and int(span[1]) == start and version in ("", known)
        if status != 200 and not (status == 206 and continues):
            _forget(part)
            raise _TryAgain("the server did not send the part of the file that was asked for")
        length = span[2] if status == 206 and span else answer.get("Content-Length", "")
        body, head = response.iter_content(1 << 16), b""
        while len(head) < 1024 and (chunk := next(body, b"")):
            head += chunk
        is_page = formats.of_content(head) == "page"
        if is_page or "text/html" in answer.get("Content-Type", "").lower():
            raise _error(url, "the server sent a web page instead of a file; open it in a browser")
        total = int(length) if length.isdecimal() else None
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
                if total is not None and start > total:  # a body that may never end
                    break
            file.flush()
            os.fsync(file.fileno())
    if start == 0 or total not in (None, start):
        if start == 0 or (total is not None and start > total):
            _forget(part)
        raise _TryAgain(f"{start} bytes came instead of {'some' if total is None else total}")
