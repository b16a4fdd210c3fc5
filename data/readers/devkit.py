"""The development kit of ILSVRC 2012: the labels of the validation images.

Its numbers of classes (ILSVRC2012_ID) are in an order of their own. Described in its readme.txt.
"""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from utils import UserError, shown

from .. import archives

_META, _TRUTH = "meta.mat", "ILSVRC2012_validation_ground_truth.txt"
_LARGEST = 64 << 20  # bytes of a file in the kit


def is_one(path: Path) -> bool:
    """Return whether a path is a development kit: the archive, or the unpacked folder."""
    if path.is_dir():
        return _in_folder(path, _META) is not None and _in_folder(path, _TRUTH) is not None
    if not path.is_file() or archives.kind(path) not in ("gzip", "tar"):
        return False
    with suppress(UserError):
        return {_META, _TRUTH} <= _in_archive(path).keys()
    return False


def labels(path: Path) -> Mapping[str, str]:
    """Return name of a validation image, without its end -> wnid.

    Raises UserError for a kit that is damaged.
    """
    from scipy.io import loadmat  # which takes a while

    files = _in_archive(path) if path.is_file() else {}
    try:
        for name in (_META, _TRUTH):
            if name not in files:
                files[name] = Path(str(_in_folder(path, name))).read_bytes()
        synsets = loadmat(io.BytesIO(files[_META]), squeeze_me=True)["synsets"]
        wnids = {
            int(number): str(wnid)
            for number, wnid in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)
        }
        truth = [wnids[int(number)] for number in files[_TRUTH].split()]
    except Exception as error:  # a broken file makes loadmat raise almost anything
        raise UserError(
            f"{shown(path)} is no whole development kit of ILSVRC 2012 ({type(error).__name__}: "
            f"{error}); give another copy"
        ) from None
    return {f"ILSVRC2012_val_{number:08d}": wnid for number, wnid in enumerate(truth, start=1)}


def _in_folder(path: Path, name: str) -> Path | None:
    places = (path / name, path / "data" / name)
    return next((place for place in places if place.is_file()), None)


def _in_archive(path: Path) -> dict[str, bytes]:
    files = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for entry in archive:
                name = entry.name.rpartition("/")[2]
                if name in (_META, _TRUTH) and entry.isreg() and entry.size <= _LARGEST:
                    content = archive.extractfile(entry)
                    files[name] = content.read() if content else b""
                if len(files) == 2:
                    break
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"{shown(path)} is truncated or damaged ({error}); copy it again") from None
    return files
