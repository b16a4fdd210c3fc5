"""Finding image files in folders, and counting what is left out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from utils import UserError, shown

from .formats import SUFFIXES

# what systems and tools put beside images; names that begin with a dot are theirs too
_HOUSEKEEPING = {
    *("@eadir", "#recycle", "@recycle", "$recycle.bin", "system volume information"),
    *("lost+found", "__macosx", "__pycache__", "thumbs.db", "desktop.ini", "icon\r"),
}
_KINDS = 6  # of other files that are named


@dataclass
class LeftOut:
    """What a search for images has left out.

    Attributes:
        hidden: number of names that begin with a dot, or that systems and tools make.
        others: number of files that are no images, by suffix.
        outside: number of images that are in no class folder.
        missing: number of images that a list of labels names, and that are not there.
        loops: links to a folder that they are in.
    """

    hidden: int = 0
    others: Counter[str] = field(default_factory=Counter)
    outside: int = 0
    missing: int = 0
    loops: list[str] = field(default_factory=list)

    def add_file(self, name: str) -> None:
        """Count a file that is in no class folder, or no image."""
        if is_image(name):
            self.outside += 1
        else:
            self.others[suffix(name)] += 1

    def __str__(self) -> str:
        """Return a phrase that counts it all; empty if there is nothing."""
        kinds = [shown(suffix) or "no suffix" for suffix, _ in self.others.most_common()]
        listed = ", ".join([*sorted(kinds[:_KINDS]), *["..."] * (len(kinds) > _KINDS)])
        parts = [
            f"{count} {what}{'s' * (count > 1)}{detail}"
            for count, what, detail in (
                (self.hidden, "hidden or housekeeping name", ""),
                (self.others.total(), "file", f" of other kinds ({listed})"),
                (self.outside, "image", " outside the class folders"),
                (self.missing, "label", " of images that are not there"),
            )
            if count
        ]
        if self.loops:
            more = f" and {len(self.loops) - 1} more" if len(self.loops) > 1 else ""
            parts.append(f"the link {self.loops[0]} to a folder above it{more}")
        return ", ".join(parts)


def image_files(folder: str | Path, left_out: LeftOut | None = None) -> list[Path]:
    """Return the image files in a folder and in all folders below, sorted.

    Links are followed. What is left out is added to `left_out`. Raises UserError naming a folder
    that cannot be read.
    """
    left_out = LeftOut() if left_out is None else left_out
    return [Path(path) for path in _walk(os.fspath(folder), left_out, ())]


def _walk(folder: str, left_out: LeftOut, above: tuple[str, ...]) -> Iterator[str]:
    above = (*above, os.path.realpath(folder))
    for entry in entries(folder, left_out, above):
        if is_folder(entry):
            yield from _walk(entry.path, left_out, above)
        elif is_image(entry.name):
            yield entry.path
        else:
            left_out.add_file(entry.name)


def entries(
    folder: str | Path, left_out: LeftOut, above: tuple[str, ...] = ()
) -> list[os.DirEntry[str]]:
    """Return what is in a folder, sorted by name, without hidden names and links that lead back.

    Args:
        folder: the folder.
        left_out: counts those.
        above: real paths of folders; a link to one of them, or to one that it lies in, leads back,
            as does one to this folder.
    """
    try:
        with os.scandir(folder) as scan:
            names = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(
            f"cannot read the folder {shown(folder)} ({error.strerror}); change its permissions"
        ) from None
    above = above or (os.path.realpath(folder),)
    kept = []
    for entry in names:
        if is_hidden(entry.name):
            left_out.hidden += 1
        elif entry.is_symlink() and is_folder(entry) and _leads_back(entry.path, above):
            left_out.loops.append(shown(entry.path))
        else:
            kept.append(entry)
    return kept


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def is_hidden(name: str) -> bool:
    """Return whether a name begins with a dot, or is one that systems and tools make."""
    return name.startswith(".") or name.lower() in _HOUSEKEEPING


def is_image(name: str) -> bool:
    """Return whether the name of a file is that of an image."""
    return suffix(name) in SUFFIXES


def suffix(name: str) -> str:
    """Return the end of a file's name in lower case, with its dot."""
    return os.path.splitext(name)[1].lower()


def _leads_back(link: str, above: tuple[str, ...]) -> bool:
    target = os.path.join(os.path.realpath(link), "")
    return any(os.path.join(folder, "").startswith(target) for folder in above)
