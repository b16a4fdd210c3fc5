"""Images given by the user: files, folders, archives and URLs."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import requests
from urllib3.exceptions import HTTPError, ReadTimeoutError

from utils import UserError, shown

from . import readers
from .decoding import BadImageError, ImageFile, decode, decode_content
from .folders import image_files, is_image
from .formats import SUFFIXES
from .members import Member

LIMIT = 64 << 20  # largest download in bytes
TIMEOUT = (10, 10)  # seconds to connect, and to wait for more bytes
DEADLINE = 60  # longest download in seconds
_LONGEST_STEM = 150  # bytes of a file's name, of the 255 that a file system takes


def expand(names: Iterable[str]) -> Iterator[ImageFile]:
    """Yield the names, with folders and archives replaced by the images in them.

    A folder or an archive without images stays, and so does an archive that cannot be read.
    """
    for name in names:
        if is_url(name):
            yield name
        elif os.path.isdir(name):
            yield from [str(file) for file in image_files(name)] or [name]
        elif _is_archive(name):
            yield from _images_in_archive(name) or [name]
        else:
            yield name


def is_url(name: str) -> bool:
    """Return whether `name` is an http(s) URL."""
    return re.match(r"https?://", name, re.IGNORECASE) is not None


def read(name: ImageFile) -> np.ndarray:
    """Return the image in a file or at a URL, uint8 BGR [H, W, 3]; BadImageError names it."""
    if isinstance(name, Member):
        return decode(name)
    name = str(name)
    if is_url(name):
        return decode_content(_download(name), name)
    if os.path.isdir(name):
        raise BadImageError(
            f"the folder {shown(name)} holds no images ({', '.join(sorted(SUFFIXES))}); "
            "give one that holds some"
        )
    if _is_archive(name):
        try:
            readers.find_images(name)
        except UserError as error:
            raise BadImageError(str(error)) from None
        raise BadImageError(f"the archive {shown(name)} holds no images; give one that holds some")
    return decode(name)


def stems(names: Sequence[ImageFile]) -> list[str]:
    """Return a different name for each image, for the files that are made from them.

    It is the name of the file up to its first dot, with "_" for blanks, cut to a length that leaves
    room for endings. When two would be equal or one empty, all begin with a number.
    """
    stems = ["_".join(Path(name).name.split(".")[0].split()) for name in names]
    stems = [_shortened(stem) for stem in stems]
    if len(set(stems)) < len(stems) or "" in stems:
        stems = [f"{number:08d}_{stem}" for number, stem in enumerate(stems)]
    return stems


def _is_archive(name: str) -> bool:
    return not is_image(name) and readers.is_archive(Path(name))


def _images_in_archive(name: str) -> list[ImageFile]:
    try:
        return [*readers.find_images(name)]
    except UserError:  # `read` reports it by name, beside the images that can be read
        return []


def _shortened(stem: str) -> str:
    while len(os.fsencode(stem)) > _LONGEST_STEM:
        stem = stem[:-1]
    return stem


def _download(url: str) -> bytes:
    """Return the content at a URL, at most `LIMIT` bytes."""
    content, end = bytearray(), time.monotonic() + DEADLINE
    try:
        with requests.get(url, stream=True, timeout=TIMEOUT) as response:
            if response.status_code != 200:
                raise _no_download(url, f"answered {response.status_code} {response.reason}")
            while chunk := response.raw.read1(1 << 16, decode_content=True):
                content += chunk
                if len(content) > LIMIT:
                    raise _no_download(url, f"sends more than {LIMIT >> 20} MiB")
                if time.monotonic() > end:
                    raise _no_download(url, f"has not sent all of it in {DEADLINE} s")
    except (requests.Timeout, TimeoutError, ReadTimeoutError):
        raise _no_download(url, "does not answer in time") from None
    except (OSError, ValueError, HTTPError):  # requests' own errors are of the first two kinds
        raise _no_download(url, "cannot be reached, or ends the connection") from None
    return bytes(content)


def _no_download(url: str, what: str) -> BadImageError:
    return BadImageError(f"cannot download the image {url}: the server {what}; check the URL")
