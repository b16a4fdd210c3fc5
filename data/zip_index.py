"""Where the files in a zip lie."""

from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils import UserError, shown

from .members import Index

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of name and extra field


def of_zip(path: Path) -> Index:
    """Return the files in a zip; raise UserError where it is damaged, or they cannot be read so."""
    names: list[str] = []
    places: list[tuple[int, int, int]] = []
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            for entry in tqdm(
                archive.infolist(), desc=f"indexing {path.name}", leave=False, disable=None
            ):
                if entry.is_dir():
                    continue
                if entry.flag_bits & 1 or entry.compress_type not in (0, zipfile.ZIP_DEFLATED):
                    raise UserError(
                        f"{shown(entry.filename)} in the zip {shown(path)} is encrypted, or "
                        "compressed otherwise than by deflate; unpack it and give the folder"
                    )
                start = entry.header_offset
                header = os.pread(file.fileno(), _LOCAL_HEADER.size, start)
                signature, name, extra = _LOCAL_HEADER.unpack(header)
                offset = start + _LOCAL_HEADER.size + name + extra
                end = offset + entry.compress_size
                if signature != b"PK\3\4" or end > os.fstat(file.fileno()).st_size:
                    raise zipfile.BadZipFile
                packed = entry.compress_size if entry.compress_type else -1
                names.append(entry.filename)
                places.append((offset, entry.file_size, packed))
    # of a name that is not in its encoding, and of a version to come, zipfile raises the last two
    except (zipfile.BadZipFile, struct.error, UnicodeDecodeError, NotImplementedError):
        after = f" behind {shown(names[-1])}" if names else ""
        raise UserError(
            f"the zip {shown(path)} is truncated or damaged{after}; give a whole copy"
        ) from None
    return Index(names, np.array(places, np.int64).reshape(-1, 3), {})
