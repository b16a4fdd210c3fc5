"""From the name of published weights, a URL or a folder to a local file of weights."""

from __future__ import annotations

import os
from os import PathLike
from pathlib import Path

from data import unpickle
from utils import UserError

from .files import in_folder
from .published import PUBLISHED, Published


def published(
    source: str, arch: str, num_classes: int | None = None, stride: int | None = None
) -> Published | None:
    """Return what `source` has published of an architecture, or None.

    Where the classes of published weights are known, there must be `num_classes` of them; the total
    stride must be `stride`, if it is given.
    """
    return next(
        (
            entry
            for entry in PUBLISHED
            if (entry.source, entry.arch) == (source, arch)
            and stride in (None, entry.stride)
            and (entry.classes is None or len(entry.classes) == num_classes)
        ),
        None,
    )


def locate(source: str | PathLike) -> Path:
    """Return the local file of weights that is meant.

    Args:
        source: a path; a folder, such as a run's or one of a Hugging Face repository; an http(s)
            URL; or SOURCE:NAME of `PUBLISHED`, such as "basecls:repvgg_a0".

    What is not local is downloaded to the cache. Raises UserError when that fails, for a folder
    without weights, and for a name that is not published.
    """
    if not isinstance(source, str | PathLike):
        raise UserError(
            f"{source!r} names no weights; give a file, a folder, an http(s) URL or the name of "
            "published weights, such as 'basecls:repvgg_a0'"
        )
    text, known_sha256 = os.fspath(source), ""
    publisher, _, name = text.partition(":")
    if publisher in {entry.source for entry in PUBLISHED} and not os.path.exists(text):
        entry = _entry(publisher, name)
        text, known_sha256 = _url(entry), entry.sha256
    if "://" in text:
        from .download import fetch  # requests takes a while, which a local file need not

        return fetch(text, known_sha256)
    with unpickle.reading(text):
        return in_folder(text)


def _entry(publisher: str, name: str) -> Published:
    """Return the published weights of a name."""
    names = {entry.name: entry for entry in PUBLISHED if entry.source == publisher}
    if name not in names:
        title = "BaseCls" if publisher == "basecls" else publisher
        raise UserError(f"{title} has published no {name!r}; the names are {', '.join(names)}")
    return names[name]


def _url(entry: Published) -> str:
    """Return the address of a published file."""
    if entry.source == "timm":
        return f"{entry.where}/resolve/main/model.safetensors"
    if entry.where.endswith((".pkl", ".pth", ".pt", ".tar")):
        return entry.where
    raise UserError(
        f"{entry.source}:{entry.name} has no address of its own; download it from {entry.where} "
        "and give the file"
    )
