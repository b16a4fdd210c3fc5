"""A small writer of PyTorch's two file formats, for tests; PyTorch itself is not needed."""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C


class Global:
    """Is pickled as the mention of a global, which need not exist."""

    def __init__(self, name):
        self.name = name


class Call:
    """Is pickled as the call of a global, with a state or without."""

    def __init__(self, name, *arguments, state=None):
        self.name, self.arguments, self.state = name, arguments, state


class Storage:
    def __init__(self, kind, values, numel=None):
        self.kind, self.values = kind, np.asarray(values).ravel()
        self.numel = self.values.size if numel is None else numel


def tensor(storage, offset, size, stride, rebuild="_rebuild_tensor_v2"):
    notes = (False, OrderedDict()) if rebuild == "_rebuild_tensor_v2" else ()
    return Call(f"torch._utils.{rebuild}", storage, offset, size, stride, *notes)


def whole(kind, values):
    values = np.asarray(values)
    stride = tuple(step // values.itemsize for step in values.strides)
    return tensor(Storage(kind, values), 0, values.shape, stride)


class Pickler(pickle._Pickler):
    dispatch = pickle._Pickler.dispatch.copy()

    def __init__(self, file, protocol=2, notes=()):
        super().__init__(file, protocol)
        self.notes, self.storages = notes, []

    def persistent_id(self, thing):
        if not isinstance(thing, Storage):
            return None
        if thing not in self.storages:
            self.storages.append(thing)
        kind, key = Global(thing.kind), str(self.storages.index(thing))
        return ("storage", kind, key, "cuda:0", thing.numel, *self.notes)

    def save_global_by_name(self, thing):
        module, _, name = thing.name.rpartition(".")
        if self.proto >= 4:
            self.save(module)
            self.save(name)
            self.write(pickle.STACK_GLOBAL)
        else:
            self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())

    def save_call(self, thing):
        self.save_global_by_name(thing)
        self.save(thing.arguments)
        self.write(pickle.REDUCE)
        if thing.state is not None:
            self.save(thing.state)
            self.write(pickle.BUILD)

    dispatch[Global] = save_global_by_name
    dispatch[Call] = save_call


def write_zip(
    path,
    contents,
    root="archive",
    byteorder=b"little",
    compression=0,
    without=(),
    protocol=2,
    alignment=64,
):
    """What torch.save writes since 1.6; `contents` may be the bytes of a pickle."""
    file = io.BytesIO()
    pickler = Pickler(file, protocol)
    if isinstance(contents, bytes):
        file.write(contents)
    else:
        pickler.dump(contents)
    members = {"data.pkl": file.getvalue(), "version": b"3\n"}
    if byteorder is not None:
        members["byteorder"] = byteorder
    order = ">" if byteorder == b"big" else "<"
    for key, storage in enumerate(pickler.storages):
        values = storage.values
        members[f"data/{key}"] = values.astype(values.dtype.newbyteorder(order)).tobytes()
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            if name not in without:
                info = zipfile.ZipInfo(f"{root}/{name}")
                padding = -(archive.fp.tell() + 34 + len(info.filename)) % alignment
                info.extra = b"FB" + struct.pack("<H", padding) + bytes(padding)
                archive.writestr(info, data, compression)
    return path


def write_legacy(
    path, contents, keys=None, counts=None, protocol=2, notes=(None,), little_endian=True
):
    """What torch.save wrote before 1.6."""
    with open(path, "wb") as file:
        for header in (MAGIC, 1001, {"protocol_version": 1001, "little_endian": little_endian}):
            pickle.dump(header, file, protocol)
        pickler = Pickler(file, protocol, notes)
        pickler.dump(contents)
        storages = pickler.storages
        pickle.dump(keys or [str(key) for key in range(len(storages))], file, protocol)
        for key, storage in enumerate(storages):
            file.write(struct.pack("<q", (counts or {}).get(key, storage.values.size)))
            file.write(storage.values.tobytes())
    return path
