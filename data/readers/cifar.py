"""CIFAR-10 and CIFAR-100 in their original forms, binary or of Python, as an archive or unpacked.

The forms are described at https://www.cs.toronto.edu/~kriz/cifar.html. A pickle is read as data:
nothing in it is executed.
"""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils import UserError, shown

from .. import archives, unpickle
from ..augment import Augmentation
from ..datasets import SPLITS, Dataset

_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE
_LARGEST = 1 << 28  # bytes of a file


@dataclass(frozen=True)
class _Form:
    """A form of a data set: names of its files, and how many labels come before an image."""

    name: str
    parts: Mapping[str, tuple[str, ...]]
    classes_file: str
    labels: tuple[str, ...] = ()  # keys of a pickle: of the labels, and of the classes' names
    label_bytes: int = 0


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_FORMS = (
    _Form("CIFAR-10", {"train": _BATCHES, "val": ("test_batch",)}, "batches.meta",
          ("labels", "label_names")),
    _Form("CIFAR-100", {"train": ("train",), "val": ("test",)}, "meta",
          ("fine_labels", "fine_label_names")),
    _Form("CIFAR-10", {"train": tuple(f"{name}.bin" for name in _BATCHES),
                       "val": ("test_batch.bin",)}, "batches.meta.txt", label_bytes=1),
    _Form("CIFAR-100", {"train": ("train.bin",), "val": ("test.bin",)}, "fine_label_names.txt",
          label_bytes=2),
)  # fmt: skip


def read(path: Path, split: str) -> Dataset | None:
    """Return a part of CIFAR; None where a folder or archive holds something else.

    The images are in memory. Raises UserError naming a file that is damaged.
    """
    files = _files(path)
    form = next((form for form in _FORMS if files and {*form.parts["val"]} <= files.keys()), None)
    if form is None or form.classes_file not in files:
        return None
    names = {"train": "train", "val": "val", "test": "val"}
    if split not in names:
        raise UserError(f"{form.name} has the parts train and test, and no {shown(split)}")
    read_file = _pickled if form.labels else _binary
    images, labels, classes = [], [], _classes(path, files, form)
    for name in form.parts[names[split]]:
        if name not in files:
            raise UserError(f"the file {name} of {form.name} is missing in {shown(path)}; add it")
        where = f"{path}/{name}"
        some, theirs = read_file(_content(path, files[name], where), form, where)
        if len(some) != len(theirs) or (len(theirs) and int(theirs.max()) >= len(classes)):
            raise _damaged(where, f"its labels are not one of {len(classes)} for each image")
        images.append(some)
        labels.append(theirs)
    planes = np.concatenate(images).reshape(-1, 3, _SIDE, _SIDE)[:, ::-1]  # RGB to BGR
    return Dataset(
        form.name,
        np.ascontiguousarray(planes.transpose(0, 2, 3, 1)),
        np.concatenate(labels).astype(np.int32),
        classes,
        Augmentation(),
        folder=path,
        split="train/" if names[split] == "train" else "test/",
    )


def _files(path: Path) -> dict[str, Path | tarfile.TarInfo]:
    """Return the files in a folder, in its only folder, or in a tar, by name.

    Raises UserError where there are two such folders.
    """
    if path.is_dir():
        folders = [path]
        if not any((path / name).is_dir() for names in SPLITS.values() for name in names):
            folders += sorted(path.glob("cifar*"))
        found = {folder: files for folder in folders if (files := _of_form(folder))}
        if len(found) > 1 and path not in found:
            names = " and ".join(shown(folder) for folder in found)
            raise UserError(f"{shown(path)} has {names}; give one of them to --data")
        return next(iter(found.values()), {})
    if not path.is_file() or archives.kind(path) not in ("gzip", "tar"):
        return {}
    if not _is_named_cifar(path):
        return {}
    try:
        with tarfile.open(path) as archive:
            return {entry.name.rpartition("/")[2]: entry for entry in archive if entry.isreg()}
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise _damaged(str(path), str(error)) from None


def _of_form(folder: Path) -> dict[str, Path | tarfile.TarInfo]:
    """Return the files of CIFAR in a folder by name; {} unless all are there."""
    for form in _FORMS:
        names = (*form.parts["val"], form.classes_file, *form.parts["train"])
        files = {name: folder / name for name in names if (folder / name).is_file()}
        if {*form.parts["val"], form.classes_file} <= files.keys():
            return dict(files)
    return {}


def _is_named_cifar(path: Path) -> bool:
    """Return whether the first name in an archive is that of CIFAR's folder."""
    with suppress(tarfile.TarError, OSError, EOFError, zlib.error), tarfile.open(path) as archive:
        first = archive.next()
        return first is not None and first.name.removeprefix("./").startswith("cifar-10")
    return False


def _content(path: Path, file: Path | tarfile.TarInfo, where: str) -> bytes:
    size = file.stat().st_size if isinstance(file, Path) else file.size
    if size > _LARGEST:
        raise _damaged(where, f"it has {size} bytes")
    try:
        if isinstance(file, Path):
            return file.read_bytes()
        with tarfile.open(path) as archive:
            inner = archive.extractfile(file)
            return inner.read() if inner else b""
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise _damaged(where, str(error)) from None


def _damaged(where: str, why: str) -> UserError:
    return UserError(f"{shown(where)} is truncated or damaged ({why}); give a whole copy of CIFAR")


def _classes(path: Path, files: Mapping[str, Path | tarfile.TarInfo], form: _Form) -> list[str]:
    where = f"{path}/{form.classes_file}"
    content = _content(path, files[form.classes_file], where)
    if not form.labels:
        return content.decode("latin-1").split()
    names = _unpickled(content, where).get(form.labels[1])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _damaged(where, f"it has no {form.labels[1]}")
    return names


def _pickled(content: bytes, form: _Form, where: str) -> tuple[np.ndarray, np.ndarray]:
    batch = _unpickled(content, where)
    images, labels = batch.get("data"), batch.get(form.labels[0])
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        raise _damaged(where, "it has no images")
    if images.shape[1:] != (_PIXELS,) or not isinstance(labels, list):
        raise _damaged(where, f"it has no {form.labels[0]}, or images of another size")
    if not all(isinstance(label, int) and 0 <= label < 100 for label in labels):
        raise _damaged(where, "a label is none")
    return images, np.array(labels, np.int64)


def _unpickled(content: bytes, where: str) -> dict:
    with unpickle.reading(where):
        contents = unpickle.Unpickler(io.BytesIO(content)).load()
    if not isinstance(contents, dict):
        raise _damaged(where, "it holds no table")
    return contents


def _binary(content: bytes, form: _Form, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Read rows of one or two labels, of which the last counts, and the pixels."""
    row = form.label_bytes + _PIXELS
    if not content or len(content) % row:
        raise _damaged(where, f"its size is no multiple of {row}")
    rows = np.frombuffer(content, np.uint8).reshape(-1, row)
    return rows[:, form.label_bytes :], rows[:, form.label_bytes - 1].astype(np.int64)
