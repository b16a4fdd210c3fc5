"""Reading pickles as data: arrays and plain values are admitted, and nothing is ever executed."""

from __future__ import annotations

import io
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any, BinaryIO, ClassVar, Literal

import numpy as np

from utils import UserError


class ForbiddenError(Exception):
    """A pickle that asks for something that is no data; the message is its name."""


class DamagedError(Exception):
    """A file that contradicts itself; the message says in what."""


def load(path: str | PathLike) -> Any:
    """Return the object in a pickle of arrays and plain values.

    Raises UserError when the file is missing, empty, truncated or no pickle, and, naming it, when
    it asks for anything else than arrays and plain values.
    """
    with reading(path), open(path, "rb") as file:
        return Unpickler(file).load()


@contextmanager
def reading(path: str | PathLike) -> Iterator[None]:
    """Turn whatever goes wrong while `path` is read into a UserError of one sentence."""
    try:
        yield
    except UserError:
        raise
    except ForbiddenError as forbidden:
        raise UserError(
            f"{path} asks for {forbidden}, which is neither an array nor a plain value; "
            "it was refused and nothing in it was executed"
        ) from None
    except DamagedError as error:
        raise UserError(f"{path} is damaged: {error}; give a complete copy of it") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:  # a broken pickle can raise almost anything
        raise UserError(
            f"{path} is empty, truncated or not a checkpoint ({type(error).__name__}: {error}); "
            "give a file that was saved completely"
        ) from None


# ---------------------------------------------------------------- stand-ins for NumPy's globals
#
# Naming nothing but NumPy is not enough to be safe: NumPy believes the state of a type, and one
# that says that raw bytes are pointers crashes the process or worse.


def _dtype(name: str, _align: bool = False, _copy: bool = False) -> np.dtype:
    dtype = np.dtype(str(name), copy=True)  # a copy: its state is going to set the byte order
    if dtype.kind not in "biufcSU":
        raise ForbiddenError(f"numpy.dtype {dtype}")
    return dtype


def _frombuffer(
    data: bytes, dtype: np.dtype, shape: tuple[int, ...], order: Literal["C", "F"]
) -> np.ndarray:
    return np.frombuffer(data, dtype).reshape(shape, order=order)


def _reconstruct(_type: str, _shape: tuple, _code: bytes) -> np.ndarray:
    return np.empty(0, np.int8)  # to be filled by its state


def _scalar(dtype: np.dtype, data: bytes) -> np.generic:
    return _frombuffer(data, dtype, (1,), "C")[0]


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":  # the only one that pickle uses
        raise ForbiddenError("_codecs.encode")
    return text.encode(encoding)


def _no_bytes() -> bytes:
    return b""


# What pickles of arrays, dicts, lists, numbers and strings name -> what stands in for it. What is
# only mentioned and never called becomes a string. The modules moved with NumPy 2.
_STAND_INS: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "numpy.ndarray": "numpy.ndarray",
    "numpy.dtype": _dtype,
    "_codecs.encode": _encode,  # how protocol 2 writes bytes, and with the next two, no bytes
    "__builtin__.bytes": _no_bytes,
    "builtins.bytes": _no_bytes,
    **{
        f"numpy.{core}.{name}": stand_in
        for core in ("core", "_core")
        for name, stand_in in (
            ("multiarray._reconstruct", _reconstruct),
            ("multiarray.scalar", _scalar),
            ("numeric._frombuffer", _frombuffer),
        )
    },
}


class Unpickler(pickle._Unpickler):
    """Unpickler that imports nothing: names become stand-ins, and only arrays get a state.

    It is Python's own unpickler instead of the faster one in C, because only there BUILD can be
    overridden: the opcode that sets any attribute of any object.
    """

    stand_ins: ClassVar[dict[str, Any]] = _STAND_INS
    stack: list[Any]  # pickle._Unpickler's, as the three functions
    read: Callable[[int], bytes]
    readinto: Callable[[bytearray], int]
    append: Callable[[Any], None]

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        start = file.tell()
        self._size = file.seek(0, io.SEEK_END)
        file.seek(start)

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a global; raise ForbiddenError when there is none."""
        try:
            return self.stand_ins[f"{module}.{name}"]
        except KeyError:
            raise ForbiddenError(f"{module}.{name}") from None

    def load_build(self) -> None:
        """Handle BUILD: set the state on top of the stack in the object below it."""
        state = self.stack.pop()
        target: Any = self.stack[-1]
        if isinstance(target, np.dtype):
            # The byte order is all that may differ from what the name of the type says.
            if target.newbyteorder(state[1]).__reduce__()[2] != state:
                raise ForbiddenError(f"numpy.dtype {target} with a state of its own")
            target.__setstate__(state)  # type: ignore[attr-defined]
        elif isinstance(target, np.ndarray) and target.size == 0:  # not filled before
            target.__setstate__(state)  # raises where the shape does not fit the data
        elif type(target) is dict:
            target.update(state)  # the attributes of a namespace
        elif type(target) is not OrderedDict:  # its attributes are notes about versions
            raise ForbiddenError(f"the state of a {type(target).__name__}")

    def load_bytearray8(self) -> None:
        """Handle BYTEARRAY8; Python's would fill memory of a size that the file makes up."""
        (size,) = struct.unpack("<Q", self.read(8))
        if size > self._size:
            raise DamagedError(f"an array of {size} bytes is larger than the file")
        array = bytearray(size)
        self.readinto(array)
        self.append(array)

    dispatch: ClassVar[dict] = {
        **pickle._Unpickler.dispatch,
        pickle.BUILD[0]: load_build,
        pickle.BYTEARRAY8[0]: load_bytearray8,
    }
