"""Reading PyTorch's checkpoints without PyTorch, as data: nothing in them is ever executed.

Since PyTorch 1.6 a checkpoint is a zip archive of a pickle, `data.pkl`, and of the tensors'
storages, one file each under `data/`. Before, it was a row of pickles followed by the storages. In
both formats the pickle names a storage, an offset, a size and strides for each tensor.
"""

from __future__ import annotations

import io
import mmap
import struct
import zipfile
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import IO, Any, ClassVar

import numpy as np

from data import foreign, unpickle
from data.unpickle import DamagedError, UnsuitableError
from utils import brief

from . import archives, torch_tensors

_ZIP = b"PK\3\4"
LEGACY = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")  # the magic number, as pickles write it
_HEAD = 512  # bytes at the beginning, which tell the formats apart


def load_file(file: IO[bytes]) -> Any:
    """Return the object in a PyTorch checkpoint of either format, or in a pickle of arrays.

    To be called within `unpickle.reading`, which makes sentences of its errors. Tensors and
    parameters become read-only arrays of their shape and type, views of one storage sharing its
    memory; bfloat16 and float8 become float32. They read the file when they are used, so replace it
    rather than write into it. An argparse.Namespace becomes a dict, a torch.Size a tuple; devices,
    dtypes and paths become strings, other objects `foreign.Placeholder`s.

    Raises DamagedError or UnsuitableError when the file is truncated, contradicts itself or is no
    checkpoint, and ForbiddenError when it asks for code or holds nothing but placeholders.
    """
    head = file.read(_HEAD)
    file.seek(0)
    if head.startswith(_ZIP):
        contents = _Archive(file).load()
    elif LEGACY in head[:32]:
        contents = _load_legacy(file)
    else:
        contents = unpickle.Unpickler(file).load()
    return unpickle.assert_data(contents)


# ---------------------------------------------------------------- the zip format


def _pickles(archive: zipfile.ZipFile) -> list[str]:
    return [name for name in archive.namelist() if PurePosixPath(name).name == "data.pkl"]


class _Archive:
    """Checkpoint in the zip format. Storages are mapped, and read when they are used."""

    def __init__(self, file: IO[bytes]):
        self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.zip = zipfile.ZipFile(file)
        self.members = {info.filename: info for info in self.zip.infolist()}
        archives.check_growth(self.zip, len(self.map))
        if any(PurePosixPath(name).name == "constants.pkl" for name in self.members):
            raise UnsuitableError(
                "is a TorchScript program, which holds code beside the weights and was not "
                "executed; load it by torch.jit.load where PyTorch is installed, and save "
                "torch.save(model.state_dict(), 'weights.pth')"
            )
        if len(pickles := _pickles(self.zip)) != 1:
            raise UnsuitableError(
                f"is a zip with {len(pickles)} members data.pkl instead of one; give a file that "
                "PyTorch wrote"
            )
        self.root = pickles[0].removesuffix("data.pkl")
        self.byteorder = "<"
        if self.root + "byteorder" in self.members:
            self.byteorder = {b"little": "<", b"big": ">"}[bytes(self._read("byteorder"))]

    def load(self) -> Any:
        """Return the object in `data.pkl`."""
        return _Unpickler(io.BytesIO(self._read("data.pkl")), self._storage).load()

    def _storage(self, kind: str, key: str, numel: int) -> np.ndarray:
        dtype = np.dtype(self.byteorder + torch_tensors.STORAGES[kind])
        data = self._read(f"data/{key}", numel * dtype.itemsize)
        # Copied only where another program than PyTorch made the zip, or a big-endian machine.
        stored = np.require(np.frombuffer(data, dtype, numel), dtype.newbyteorder("="), "A")
        return torch_tensors.decode(kind, stored)

    def _read(self, name: str, nbytes: int | None = None) -> memoryview | bytes:
        info = self.members.get(self.root + name)
        if info is None:
            raise DamagedError(f"its member {self.root + name} is missing")
        # A storage of bytes that was viewed as a wider type may have a few bytes to spare.
        if nbytes is not None and not 0 <= info.file_size - nbytes < 16:
            raise DamagedError(f"its member {info.filename} has not the {nbytes} bytes it should")
        if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1:  # not encrypted
            # The checksum is left alone: PyTorch can be told to write none (set_crc32_options).
            name_and_extra = struct.unpack_from("<HH", self.map, info.header_offset + 26)
            start = info.header_offset + 30 + sum(name_and_extra)
            return memoryview(self.map)[start : start + info.file_size]
        if info.compress_type > zipfile.ZIP_DEFLATED:  # others cannot be stopped while they grow
            raise UnsuitableError(
                f"has a member {info.filename} that is compressed by an unusual method; save it "
                "without compression"
            )
        with self.zip.open(info) as member:
            return member.read(info.file_size)


# ---------------------------------------------------------------- the format before 1.6


def _load_legacy(file: IO[bytes]) -> Any:
    """Return the object in a file of the format before 1.6.

    Such a file holds the magic number, version, system, object and the storages' keys, a pickle
    each, and then the storages.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    storages: dict[str, tuple[str, np.ndarray]] = {}

    def storage(kind: str, key: str, numel: int) -> np.ndarray:
        # The bytes come behind the pickle, so the tensors are views of what will be filled then.
        if numel * np.dtype(torch_tensors.STORAGES[kind]).itemsize > size:
            raise DamagedError(f"storage {key} of {numel} elements is larger than the file")
        values = np.empty(
            numel, torch_tensors.decode(kind, np.empty(0, torch_tensors.STORAGES[kind])).dtype
        )
        storages[key] = kind, values
        return values

    _magic, _version, system = (unpickle.Unpickler(file).load() for _ in range(3))
    if not system["little_endian"]:
        raise UnsuitableError("is of a big-endian machine; save it again with PyTorch 1.6")
    unpickler = _Unpickler(file, storage)
    contents = unpickle.assert_data(unpickler.load())
    if unpickler.other_kinds:
        raise UnsuitableError(
            f"has tensors of {', '.join(unpickler.other_kinds)}, which are not read; save them as "
            "float32"
        )
    keys = unpickle.Unpickler(file).load()
    if sorted(keys) != sorted(storages):
        raise DamagedError("its list of storages is not that of its tensors")
    for key in keys:
        kind, values = storages[key]
        decoded = values.dtype != torch_tensors.STORAGES[kind]
        stored = np.empty(values.size, torch_tensors.STORAGES[kind]) if decoded else values
        (numel,) = struct.unpack("<q", file.read(8))
        if numel != stored.size or file.readinto(stored.data) != stored.nbytes:  # type: ignore[attr-defined]
            raise DamagedError(f"storage {key} has not the {stored.size} elements it should have")
        if decoded:
            values[:] = torch_tensors.decode(kind, stored)
    return contents


# ---------------------------------------------------------------- the pickle in both


class _Unpickler(unpickle.Unpickler):
    """Unpickler that also admits tensors, and a few of PyTorch's objects as plain values."""

    stand_ins: ClassVar[dict[str, Any]] = {
        **unpickle.Unpickler.stand_ins,
        **torch_tensors.STAND_INS,
    }

    def __init__(self, file: IO[bytes], storage: Callable[[str, str, int], np.ndarray]):
        super().__init__(file)
        self.storage = storage
        self.storages: dict[str, tuple[str, int, np.ndarray]] = {}
        self.other_kinds: list[str] = []

    def persistent_load(self, mention: tuple) -> np.ndarray | foreign.Placeholder:
        """Return the storage of a tensor, [numel]; the same one for the same key."""
        what, kind, key, _location, numel, *view = mention
        if isinstance(kind, type) and issubclass(kind, foreign.Placeholder):
            self.other_kinds.append(kind.name)  # quantized numbers, say
            return kind()
        valid = (
            what == "storage"
            and kind in torch_tensors.STORAGES
            and type(numel) is int
            and numel >= 0
        )
        used = f"a tensor uses {brief(mention)}, which is no whole storage"
        if any(view):
            raise UnsuitableError(
                f"is of PyTorch before 0.4: {used}; load it with PyTorch and save it again"
            )
        if not valid:
            raise DamagedError(used)
        if key not in self.storages:
            self.storages[key] = kind, numel, self.storage(kind, key, numel)
        *known, values = self.storages[key]
        if known != [kind, numel]:
            raise DamagedError(f"storage {key} has two types or sizes")
        return values
