"""Which files hold a part of the data: a folder, a file, or the shards of a pattern."""

from __future__ import annotations

import glob
import gzip
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from utils import UserError, shown

from .. import archives
from ..datasets import SPLITS, NoSuchPartError
from ..folders import LeftOut, entries, is_folder, is_image, suffix

_WORDS = {"train": SPLITS["train"], "val": (*SPLITS["val"], "t10k")}  # t10k: MNIST's
_ALL_WORDS = _WORDS["train"] + _WORDS["val"]
_NO_DATA = {".json", ".txt", ".csv", ".md", ".lock", ".part", ".py", ".html"}  # are not looked into
_KINDS = ("tar", "zip", "parquet", "idx")


class Place(NamedTuple):
    """Where a part of the data is.

    Attributes:
        source: what the user has given, or the part's own folder or file in it.
        paths: one folder, or files of one kind.
        kind: "folder", "tar", "zip", "parquet" or "idx".
        names: the names that the part may have, the preferred one first.
        split: the part's name, for people.
        exact: the user has named the part.
        whole: nothing says that these files are of that part alone.
    """

    source: Path
    paths: list[Path]
    kind: str
    names: Sequence[str]
    split: str
    exact: bool
    whole: bool


def find(root: str | Path, split: str, exact: bool) -> Place | None:
    """Return where a split is; None for a folder that is none of ours: of class folders, or empty.

    Raises UserError for a file or pattern that cannot be used.
    """
    text = os.fspath(root)
    names = (split,) if exact else _WORDS[split]
    path = Path(text)
    if not path.exists() and re.search(r"[{*?\[]", text):
        files = expand(text)
        if place := _among(path.parent, files, names, exact):
            return place
        if any(is_of_a_part(file) for file in files):
            raise NoSuchPartError(
                f"no file of {shown(text)} has {' or '.join(names)} in its name; give a pattern of "
                "all parts, such as {train,val}-*.tar, or for training --holdout 0.1"
            )
        return _all(path.parent, files, names, exact)
    if path.is_file():
        return _all(path, [path], names, exact)
    for name in names:
        if (path / name).is_dir():
            return _folder(path / name, names, exact)
    for folder in (path, path / "data"):  # Hugging Face's data sets have the latter
        files = data_files(folder)
        place = _among(folder, files, names, exact)
        if place is None and files and not any(is_of_a_part(file) for file in files):
            place = _all(folder, files, names, exact)
        if place is not None:
            _check_gaps(place.paths)
            return place
    if path.is_dir() and not _has_folders(path) and _has_images(path):
        return Place(path, [path], "folder", names, "all images", exact, True)
    return None


def expand(pattern: str) -> list[Path]:
    """Return the files that a pattern names: {0000..1281}, {a,b} and what shells know.

    Raises UserError when there is none, or when one of a range is missing: braces name all of the
    files, and between those that a shell's pattern finds no number may be left out.
    """
    files = []
    for text in _braces(pattern):
        if re.search(r"[*?\[]", text):
            found = sorted(glob.glob(text))
            _check_gaps([Path(file) for file in found])
            files += found
        elif os.path.isfile(text):
            files.append(text)
        else:
            raise UserError(
                f"the file {shown(text)} of the pattern {shown(pattern)} is missing; give it, or a "
                "pattern of those that are there"
            )
    if not files:
        raise UserError(f"there are no files {shown(pattern)}; give another pattern")
    return [Path(file) for file in files]


def _braces(pattern: str) -> Iterator[str]:
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        yield pattern
        return
    span = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    choices: Sequence[str] = match[1].split(",")
    if span:
        width = len(span[1])
        choices = [f"{number:0{width}d}" for number in range(int(span[1]), int(span[2]) + 1)]
    for choice in choices:
        yield from _braces(pattern[: match.start()] + choice + pattern[match.end() :])


def data_files(folder: Path) -> list[Path]:
    """Return the archives and other files of data in a folder, told by their content."""
    if not folder.is_dir():
        return []
    files = [
        Path(entry.path)
        for entry in entries(folder, LeftOut())
        if entry.is_file() and not is_image(entry.name) and suffix(entry.name) not in _NO_DATA
    ]
    return [file for file in files if kind(file) in _KINDS]


def kind(path: Path) -> str:
    """Return what `archives.kind` does, and "idx" for a compressed one."""
    what = archives.kind(path)
    if what == "gzip":
        with suppress(OSError, EOFError), gzip.open(path) as file:
            if file.read(3) == b"\0\0\x08":
                return "idx"
    return what


def is_of_a_part(file: Path) -> bool:
    """Return whether a file's name has the word of a split in it, as train-0000.tar has."""
    return _is_of(file, _ALL_WORDS)


def _is_of(file: Path, words: Sequence[str]) -> bool:
    text = file.name.lower()
    return any(re.search(rf"(?<![a-z]){re.escape(word)}(?![a-z])", text) for word in words)


def _among(source: Path, files: list[Path], names: Sequence[str], exact: bool) -> Place | None:
    """Return those of the files that have the first possible name of a split in theirs.

    A file with the name of another split too, such as train_val.zip, holds the data of both, unless
    another file is of that split alone.
    """
    groups = [] if exact else [group for group in _WORDS.values() if not {*names} & {*group}]
    others = [word for group in groups for word in group]
    alone = [file for file in files if not _is_of(file, others)]
    mixed = [file for file in files if _is_of(file, others)]
    of_other = any(not _is_of(file, names) for file in mixed)
    for candidates, is_whole in ((alone, False), (mixed, not of_other)):
        for name in names:
            if chosen := [file for file in candidates if _is_of(file, [name])]:
                return _of_files(source, chosen, names, exact, is_whole)
    return None


def _all(source: Path, files: list[Path], names: Sequence[str], exact: bool) -> Place:
    return _of_files(source, files, names, exact, whole=True)


def _of_files(
    source: Path, files: list[Path], names: Sequence[str], exact: bool, whole: bool
) -> Place:
    kinds = {file: kind(file) for file in files}
    first = next(iter(kinds.values()))
    for file, what in kinds.items():
        if what not in _KINDS:
            how = f"is compressed ({what}); decompress it" if what else "is no archive of images"
            raise UserError(f"{shown(file)} {how}, or give class folders, a tar, zip or parquet")
        if what != first:
            raise UserError(
                f"{shown(files[0])} and {shown(file)} hold the same part of the data in two forms; "
                "give one of them to --data"
            )
    title = files[0].name if len(files) == 1 else f"{len(files)} files such as {files[0].name}"
    source = files[0] if len(files) == 1 else source
    return Place(source, files, first, names, shown(title), exact, whole)


def _folder(folder: Path, names: Sequence[str], exact: bool) -> Place | None:
    """Return the place of a split that has a folder; None where it has class folders."""
    if _has_folders(folder):
        return None
    files = data_files(folder)
    if files:
        _check_gaps(files)
        return _of_files(folder, files, names, exact, whole=False)._replace(split=f"{folder.name}/")
    if _has_images(folder):
        return Place(folder, [folder], "folder", names, f"{folder.name}/", exact, False)
    return None


def _has_folders(folder: Path) -> bool:
    return any(is_folder(entry) for entry in entries(folder, LeftOut()))


def _has_images(folder: Path) -> bool:
    return any(is_image(entry.name) for entry in entries(folder, LeftOut()))


def _check_gaps(files: list[Path]) -> None:
    """Raise UserError where a number is missing in the names of shards."""
    groups: dict[tuple[str, str, int], set[int]] = {}  # before, after, digits -> numbers
    totals: dict[tuple[str, str, int], int] = {}
    for file in files:
        if match := re.fullmatch(r"(.*?)(\d+)-of-(\d+)(.*)", file.name):
            key = match[1], f"-of-{match[3]}{match[4]}", len(match[2])
            totals[key] = int(match[3])
            groups.setdefault(key, set()).add(int(match[2]))
        elif re.fullmatch(r"n\d{8}", file.stem):  # a tar for each class of ImageNet
            continue
        elif match := re.fullmatch(r"(.*?)(\d+)(\D*)", file.name):
            groups.setdefault((match[1], match[3], len(match[2])), set()).add(int(match[2]))
    for key, numbers in groups.items():
        first = min(numbers)
        if key in totals:
            wanted = range(totals[key])
        elif first < 2:
            wanted = range(first, max(numbers))
        else:
            continue  # a part that was chosen: whole sets begin at 0 or 1
        before, after, width = key
        if missing := sorted({*wanted} - numbers):
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UserError(
                f"the shard {shown(before)}{missing[0]:0{width}d}{shown(after)}{more} is missing "
                f"in {shown(files[0].parent)}; give the whole set, or name those to take "
                "in braces, such as {0001,0003}"
            )
