"""Parquet files as Hugging Face's data sets have them: a column of images, and one of labels.

A group of rows is read as a whole, so that reading single images at random would cost a hundred
times as much. The images are therefore unpacked once, as class folders in a tar in the cache.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from utils import UserError, cache_folder, shown

from .. import members, tar_writer
from ..class_names import imagenet_classes, numbered_classes, with_wnids
from ..folders import is_image
from ..formats import FORMATS, identify
from .places import Place

_LABELS = ("label", "labels", "fine_label", "cls", "class", "wnid")
_ROWS = 64  # that are in memory at once
_VERSION = 1  # of what is written
_MOST_CLASSES = 1_000_000


class _Columns(NamedTuple):
    """Names of the columns, and the classes by number; None where the labels are names."""

    image: str
    label: str
    classes: list[str] | None


def unpack(place: Place) -> Place:
    """Return the place of the tar that has the images of some parquet files as class folders.

    It is made unless it is there. Raises UserError for files that are damaged, hold no images, or
    have a label out of range, and where the disk is too small.
    """
    files = [str(file.resolve()) for file in place.paths]
    about = {"version": _VERSION, "files": [[file, *members.version(file)] for file in files]}
    unique = hashlib.sha256(os.fsencode("\n".join(files))).hexdigest()
    target = cache_folder() / f"{unique[:10]}-{place.paths[0].stem}.tar"
    if not tar_writer.is_made_of(target, about):
        parquet = _pyarrow()
        with _naming(place.paths[0]):
            columns = _columns(parquet.ParquetFile(place.paths[0]).schema_arrow, place.paths[0])
        rows, size = 0, 0
        for file in place.paths:
            with _naming(file):
                metadata = parquet.ParquetFile(file).metadata
            rows += metadata.num_rows
            size += os.path.getsize(file)
        _say_space(place, target, size)
        names = _names(parquet, place.paths, columns)
        tar_writer.write_tar(
            target,
            about,
            rows,
            lambda done: _images(parquet, place.paths, columns, names, len(done)),
            f"unpacking {place.split}",
            replace=True,
        )
    return place._replace(paths=[target], kind="tar")


def _pyarrow() -> ModuleType:
    """Return pyarrow.parquet, unable to run what a file says.

    Versions before 14.0.1 unpickle the metadata of this type when they open a file, which runs code
    in it (CVE-2023-47248).
    """
    import pyarrow
    from pyarrow import parquet

    with suppress(pyarrow.ArrowKeyError):  # done before
        pyarrow.unregister_extension_type("arrow.py_extension_type")
        # at the end of the process pyarrow would complain that it is gone
        atexit.unregister(pyarrow.lib._unregister_py_extension_types)
    return parquet


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Turn what goes wrong in a file into a sentence that names it."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # pyarrow's are of many kinds
        reason = str(error).split("\n")[0]
        raise UserError(
            f"the parquet file {shown(file)} is truncated or damaged ({reason}); give a whole copy"
        ) from None


def _say_space(place: Place, target: Path, size: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    text = (
        f"unpacking {place.split} once, about {size / 1e9:.1f} GB, into {target}; "
        f"{free / 1e9:.1f} GB are free there"
    )
    partial = target.with_name(f".{target.name}.partial")
    if partial.exists():
        size -= partial.stat().st_size
    if size > free:
        raise UserError(f"{text}, which is too little; set REPARAM_CACHE to another folder")
    print(text, file=sys.stderr)


# ---------------------------------------------------------------- columns


def _columns(schema: Any, file: Path) -> _Columns:
    import pyarrow

    images = [
        field.name
        for field in schema
        if pyarrow.types.is_struct(field.type)
        and "bytes" in [field.type.field(i).name for i in range(field.type.num_fields)]
    ]
    labels = [name for name in _LABELS if name in schema.names]
    if len(images) != 1 or not labels:
        what = "no column" if not images else "no label" if not labels else "several columns"
        raise UserError(
            f"{shown(file)} has {what} of images with bytes and path, or of their labels "
            f"({', '.join(_LABELS)}): its columns are {', '.join(map(shown, schema.names))}; give "
            "a data set of labelled images"
        )
    label = schema.field(labels[0])
    kind = label.type.value_type if pyarrow.types.is_dictionary(label.type) else label.type
    classes = None
    if pyarrow.types.is_integer(kind):
        classes = _class_names((schema.metadata or {}).get(b"huggingface", b""), label.name)
    elif not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise UserError(
            f"the column {label.name} of {shown(file)} is of {label.type}; labels are whole "
            "numbers or text"
        )
    return _Columns(images[0], label.name, classes)


def _class_names(metadata: bytes, label: str) -> list[str]:
    """Return the names in Hugging Face's metadata; [] without them."""
    try:
        names = json.loads(metadata)["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError):
        return []
    return with_wnids(names) if all(isinstance(name, str) for name in names) else []


# ---------------------------------------------------------------- rows


def _names(parquet: ModuleType, files: Sequence[Path], columns: _Columns) -> list[str]:
    """Return the name of each row's image in the tar: CLASS/FILE, each once."""
    labels: list[int | str] = []
    paths: list[str] = []
    for file in files:
        with _naming(file):
            table = parquet.ParquetFile(file)
            fields = table.schema_arrow.field(columns.image).type
            has_path = "path" in [fields.field(i).name for i in range(fields.num_fields)]
            wanted = [columns.label, *[f"{columns.image}.path"] * has_path]
            start = len(labels)
            for batch in table.iter_batches(columns=wanted):
                labels += batch.column(columns.label).to_pylist()
                rows = batch.column(columns.image).to_pylist() if has_path else [{}] * len(batch)
                paths += [(row or {}).get("path") or "" for row in rows]
            _check_labels(labels[start:], columns.classes, file)
    classes = columns.classes
    if classes == []:
        count = max(int(label) for label in labels) + 1
        classes = numbered_classes(count)
        if count != len(imagenet_classes()):  # as text in the order of the numbers
            classes = [name.zfill(len(str(count - 1))) for name in classes]
    names = []
    folders: dict[str, str] = {}  # name of a class -> that of its folder
    for row, (label, path) in enumerate(zip(labels, paths, strict=True)):
        name = str(label) if classes is None else classes[int(label)]
        folder = folders.setdefault(name, re.sub(r"[/\n]|^\.", "-", name))
        file_name = re.sub(r"\n", "_", path.replace("\\", "/").rpartition("/")[2])
        names.append(f"{folder}/{file_name.lstrip('.') or f'{row:08d}'}")
    if len({*folders.values()}) < len(folders):
        counts = Counter(folders.values())
        alike = [shown(name) for name, folder in folders.items() if counts[folder] > 1]
        raise UserError(
            f"the classes {', '.join(alike)} of {shown(files[0])} have the same name in a path, "
            "where '-' stands for '/'; rename them"
        )
    return tar_writer.told_apart(names)


def _check_labels(labels: list[int | str], classes: list[str] | None, file: Path) -> None:
    """Raise UserError naming a row whose label is missing or out of range."""
    if classes is None:
        wrong = [row for row, label in enumerate(labels) if not label]
    else:
        top = len(classes) or _MOST_CLASSES
        wrong = [
            row for row, label in enumerate(labels) if label is None or not 0 <= int(label) < top
        ]
    if wrong:
        known = f"0 to {len(classes) - 1}" if classes else "names, or numbers from 0"
        raise UserError(
            f"row {wrong[0] + 1} of {shown(file)} has the label {labels[wrong[0]]}, but labels are "
            f"{known}; give a part of the data that is labelled"
        )


def _images(
    parquet: ModuleType, files: Sequence[Path], columns: _Columns, names: list[str], start: int
) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the images from row `start` on."""
    row = 0  # of all files
    for file in files:
        first = row
        with _naming(file):
            table = parquet.ParquetFile(file)
            groups = [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
        for group, count in enumerate(groups):
            if row + count <= start:
                row += count
                continue
            with _naming(file):
                batches = table.iter_batches(
                    _ROWS, row_groups=[group], columns=[f"{columns.image}.bytes"]
                )
                for batch in batches:
                    for image in batch.column(columns.image).to_pylist():
                        if row >= start:
                            yield _named(names[row], (image or {}).get("bytes"), file, row - first)
                        row += 1


def _named(name: str, content: bytes | None, file: Path, row: int) -> tuple[str, bytes]:
    if content is None:
        raise UserError(
            f"row {row + 1} of {shown(file)} has no image in it, but a path; give files that hold "
            "their images"
        )
    if not is_image(name):
        kind = identify(content, name)
        name += (kind or FORMATS[0]).suffixes.split()[0]
    return name, content
