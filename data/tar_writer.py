"""Writing many files into one tar: resumable, and checked before it has its name.

While it is being written, the tar is .NAME.partial, and .NAME.partial.sums has the SHA-256 of what
is in it. The list becomes the last file of the tar, SHA256SUMS, as the program sha256sum reads it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from utils import UserError, locked, shown, write_atomically

from . import archives
from .archives import SUMS
from .members import Index, Member

_BETWEEN_SAVES = 64 << 20  # bytes after which what is written is made sure of


def write_tar(
    target: Path,
    about: dict,
    count: int,
    files: Callable[[list[str]], Iterable[tuple[str, bytes]]],
    action: str,
    replace: bool = False,
) -> bool:
    """Write a tar, going on with what an interrupted call has written; return False if it is there.

    Args:
        target: the tar.
        about: plain values that say what it is made of.
        count: number of files, for the progress.
        files: is given the names that are in the tar already; yields name and content of others.
        action: what is done, for people, such as "packing".
        replace: write a tar anew that was made of something else.

    Raises UserError when it cannot be written, is there and made of something else, or does not
    read back as it was written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target, "writes"):
            if is_made_of(target, about):
                return False
            if target.exists() and not replace:
                raise UserError(
                    f"{shown(target)} is there already, and of other images or settings; remove it "
                    "or give another name"
                )
            partial = target.with_name(f".{target.name}.partial")
            sums = target.with_name(f".{target.name}.partial.sums")
            done = _resume(partial, sums, about)
            bar = tqdm(desc=action, total=count, initial=len(done), unit="file", disable=None)
            with bar, open(partial, "r+b") as tar, open(sums, "ab") as log:
                _append(tar, log, files([*done]), done, bar)
            made = _checked(partial)
            target.unlink(missing_ok=True)  # what it is of is about to be said of another one
            said = json.dumps(about).encode()
            write_atomically(_about_file(target), lambda file: file.write(said))
            os.replace(partial, target)
            archives.save(target, made)
            sums.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write {shown(target)}: {error.strerror or error}; free some space, or choose "
            "another place"
        ) from None
    return True


def is_made_of(target: Path, about: dict) -> bool:
    """Return whether a tar is there, whole, and made of this."""
    try:
        return target.is_file() and json.loads(_about_file(target).read_text()) == about
    except (OSError, ValueError):
        return False


def said_to_be_of(target: Path) -> str:
    """Return what a tar that is there says it is made of, as text; "" where it says nothing."""
    try:
        return _about_file(target).read_text()
    except OSError:
        return ""


def check(path: Path) -> int:
    """Compare every file in a tar with its SHA256SUMS; return their number.

    Raises UserError naming one that differs, or where there is no such list.
    """
    return len(_checked(path).names) - 1


def _checked(path: Path) -> Index:
    made = archives.scan(path)
    members = [
        Member(os.fspath(path), name, *place)
        for name, place in zip(made.names, made.places.tolist(), strict=True)
    ]
    if made.names[-1:] != [SUMS]:
        raise UserError(f"{shown(path)} has no {SUMS}, so there is nothing to check it by")
    lines = members.pop().read().decode(errors="surrogateescape").split("\n")[:-1]
    known = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for member in tqdm(members, desc="checking", unit="file", leave=False, disable=None):
        if known.pop(member.name, None) != sha256(member.read()):
            raise UserError(f"{shown(member)} is not what was written; pack it anew")
    if known:
        raise UserError(f"{shown(next(iter(known)))} is missing in {shown(path)}; pack it anew")
    return made


def sha256(content: bytes) -> str:
    """Return the SHA-256 of a content in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def _about_file(target: Path) -> Path:
    return target.with_name(f"{target.name}.source.json")


def _resume(partial: Path, sums: Path, about: dict) -> dict[str, str]:
    """Return name -> hash of the files that are whole in a partial tar, cut off behind the last.

    Both files are begun anew where they were made of something else.
    """
    head = f"# {json.dumps(about)}"
    done: dict[str, str] = {}
    end = 0
    if partial.is_file() and sums.is_file():
        first, *lines = sums.read_bytes().decode(errors="surrogateescape").split("\n")
        if first == head:
            with open(partial, "rb") as tar:
                for line in lines[:-1]:  # one without its end is not whole
                    after, digest, name = line.split(" ", 2)
                    if not _is_whole(tar, end, int(after), digest):
                        break
                    done[name] = digest
                    end = int(after)
    with open(partial, "ab") as tar:
        tar.truncate(end)
    kept = [f"{line}\n" for line in [head, *lines[: len(done)]]] if done else [f"{head}\n"]
    sums.write_bytes("".join(kept).encode(errors="surrogateescape"))
    return done


def _is_whole(tar: BinaryIO, start: int, after: int, digest: str) -> bool:
    """Return whether the one file between two places in a tar has this hash."""
    tar.seek(start)
    try:
        with tarfile.open(fileobj=io.BytesIO(tar.read(after - start)), mode="r:") as archive:
            entry = archive.next()
            content = archive.extractfile(entry) if entry is not None else None
            return content is not None and sha256(content.read()) == digest
    except tarfile.TarError:
        return False


def told_apart(names: Sequence[str]) -> list[str]:
    """Return names of files; those that come several times get their position before the end."""
    counts = Counter(names)
    parts = (os.path.splitext(name) for name in names)
    return [
        name if counts[name] == 1 else f"{stem}_{position:08d}{end}"
        for position, (name, (stem, end)) in enumerate(zip(names, parts, strict=True))
    ]


def _append(
    tar: BinaryIO,
    log: BinaryIO,
    files: Iterable[tuple[str, bytes]],
    done: dict[str, str],
    bar: tqdm,
) -> None:
    """Add files to a partial tar, with their hashes; then the list of these, and the end."""
    tar.seek(0, os.SEEK_END)
    saved = tar.tell()
    pending: list[str] = []

    def save() -> None:
        nonlocal saved
        tar.flush()
        os.fsync(tar.fileno())
        log.write("".join(pending).encode(errors="surrogateescape"))
        log.flush()
        pending.clear()
        saved = tar.tell()

    try:
        with tarfile.open(fileobj=tar, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for name, content in files:
                if name in done:
                    raise UserError(f"two images are named {shown(name)}; give them other names")
                _add(archive, name, content)
                done[name] = sha256(content)
                pending.append(f"{tar.tell()} {done[name]} {name}\n")
                bar.update()
                if tar.tell() - saved > _BETWEEN_SAVES:
                    save()
            lines = "".join(f"{digest}  {name}\n" for name, digest in done.items())
            _add(archive, SUMS, lines.encode(errors="surrogateescape"))
    finally:
        save()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
