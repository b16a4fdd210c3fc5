"""Reading pickles as data: nothing in them is ever imported or executed.

Arrays and plain values are read; objects of other classes become inert placeholders.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import PurePosixPath, PureWindowsPath
from typing import IO, Any, ClassVar, Literal, NoReturn

import numpy as np

from utils import UserError

from . import foreign


class ForbiddenError(Exception):
    """A pickle that asks for something that is no data; the message is its name."""


class DamagedError(Exception):
    """A file that contradicts itself; the message says in what."""


class UnsuitableError(Exception):
    """A whole file that holds something else than weights; the message continues "FILE ..."."""


def assert_data(contents: Any) -> Any:
    """Return what a pickle holds; raise ForbiddenError for placeholders and no array."""
    name = foreign.first_without_arrays(contents)
    if name is not None:
        raise ForbiddenError(name)
    return contents


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
    except UnsuitableError as error:
        raise UserError(f"{path} {error}") from None
    except DamagedError as error:
        raise UserError(f"{path} is damaged: {error}; give a complete copy of it") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:  # a broken pickle can raise almost anything
        whole = isinstance(error, TypeError | ValueError | AttributeError)
        what = "not a checkpoint" if whole else "empty, truncated or not a checkpoint"
        raise UserError(
            f"{path} is {what} that can be read ({type(error).__name__}: {error}); "
            "give a file that was saved completely"
        ) from None


# ---------------------------------------------------------------- stand-ins for NumPy's globals
#
# Naming nothing but NumPy is not enough to be safe: NumPy believes the state of a type, and one
# that says that raw bytes are pointers crashes the process or worse.


def _dtype(name: str, _align: bool = False, _copy: bool = False) -> np.dtype | foreign.Placeholder:
    dtype = np.dtype(str(name), copy=True)  # a copy: its state is going to set the byte order
    if dtype.kind not in "biufcSU":
        return foreign.placeholder(f"numpy.dtype {dtype}")()
    return dtype


def _frombuffer(
    data: bytes, dtype: Any, shape: tuple[int, ...], order: Literal["C", "F"]
) -> np.ndarray | foreign.Placeholder:
    if not isinstance(dtype, np.dtype):
        return dtype
    return np.frombuffer(data, dtype).reshape(shape, order=order)


def _reconstruct(_type: str, _shape: tuple, _code: bytes) -> np.ndarray:
    return np.empty(0, np.int8)  # to be filled by its state


def _scalar(dtype: Any, data: Any) -> Any:
    if not isinstance(dtype, np.dtype):
        return dtype
    # Python 2 wrote bytes as text
    return np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, dtype, 1)[0]


def _reconstructor(kind: type, _base: type, state: Any) -> Any:
    """Return an object as protocols 0 and 1 write it, with the items of its base class."""
    instance = kind()
    if isinstance(instance, dict) and state is not None:
        instance.update(state if isinstance(state, dict) else {"(items)": state})
    return instance


def _pickled_tensor(*_: Any) -> NoReturn:
    raise UnsuitableError(
        "has tensors that were pickled one by one, which was refused and nothing in it was "
        "executed; load it by pickle where PyTorch is installed, and save it anew by "
        "torch.save(state_dict, 'weights.pth')"
    )


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
    "copyreg._reconstructor": _reconstructor,
    "copy_reg._reconstructor": _reconstructor,
    "argparse.Namespace": dict,
    "collections.Counter": dict,  # in the state of MultiStepLR
    "pathlib.PosixPath": lambda *parts: str(PurePosixPath(*parts)),
    "pathlib.WindowsPath": lambda *parts: str(PureWindowsPath(*parts)),
    "megengine.tensor.Tensor": lambda values, *_: values,
    "megengine.tensor.Parameter": lambda values, *_: values,
    "torch.storage._load_from_bytes": _pickled_tensor,
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


def _has_notes(target: Any, state: Any) -> bool:
    """Return whether a state is notes that are not needed.

    They are about versions in an OrderedDict of PyTorch's, about quantization in a tensor of
    MegEngine's.
    """
    is_tensor = isinstance(target, np.ndarray) and isinstance(state, dict)
    return is_tensor or type(target) is OrderedDict


class Unpickler(pickle._Unpickler):
    """Unpickler that imports nothing: names become stand-ins or placeholders.

    It is Python's own unpickler instead of the faster one in C, because only there BUILD can be
    overridden: the opcode that sets any attribute of any object. Text of Python 2 is latin1.
    """

    stand_ins: ClassVar[dict[str, Any]] = _STAND_INS
    stack: list[Any]  # pickle._Unpickler's, as the others
    memo: dict[int, Any]
    read: Callable[[int], bytes]
    readinto: Callable[[bytearray], int]
    append: Callable[[Any], None]

    def __init__(self, file: IO[bytes]):
        super().__init__(file, encoding="latin1")
        self._placeholders: dict[str, type[foreign.Placeholder]] = {}
        start = file.tell()
        self._size = file.seek(0, io.SEEK_END)
        file.seek(start)

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a global, or a class of placeholders.

        Raises ForbiddenError for one whose only use is to run code.
        """
        full = f"{module}.{name}"
        if full in self.stand_ins:
            return self.stand_ins[full]
        if foreign.is_dangerous(module, name):
            raise ForbiddenError(full)
        if full not in self._placeholders:
            self._placeholders[full] = foreign.placeholder(full)
        return self._placeholders[full]

    def persistent_load(self, mention: Any) -> Any:
        """Refuse: outside of PyTorch's files nothing is kept beside the pickle."""
        if not isinstance(mention, tuple):
            raise pickle.UnpicklingError("it names something outside of it")
        raise UnsuitableError(
            "is a part of an unpacked PyTorch file, without the tensors; give the whole file"
        )

    def load_newobj(self) -> None:
        """Handle NEWOBJ: an instance of a class, which is a stand-in or a placeholder."""
        arguments = self.stack.pop()
        self.stack[-1] = self.stack[-1](*arguments)

    def load_newobj_ex(self) -> None:
        """Handle NEWOBJ_EX: an instance of a class, with named arguments."""
        named, arguments = self.stack.pop(), self.stack.pop()
        self.stack[-1] = self.stack[-1](*arguments, **named)

    def load_setitem(self) -> None:
        """Handle SETITEM: one item of a dict."""
        value, key = self.stack.pop(), self.stack.pop()
        _set_item(self.stack[-1], key, value)

    def load_setitems(self) -> None:
        """Handle SETITEMS: items of a dict."""
        items = self.pop_mark()  # type: ignore[attr-defined]  # typeshed lacks it
        for key, value in zip(items[::2], items[1::2], strict=True):
            _set_item(self.stack[-1], key, value)

    def load_build(self) -> None:
        """Handle BUILD: set the state on top of the stack in the object below it."""
        state = self.stack.pop()
        target: Any = self.stack[-1]
        if isinstance(target, foreign.Placeholder):
            target.set_state(state)
        elif isinstance(target, np.dtype):
            # The byte order is all that may differ from what the name of the type says.
            if target.newbyteorder(state[1]).__reduce__()[2] != state:
                raise ForbiddenError(f"numpy.dtype {target} with a state of its own")
            target.__setstate__(state)  # type: ignore[attr-defined]
        elif isinstance(target, np.ndarray) and target.size == 0:  # not filled before
            if isinstance(state[2], foreign.Placeholder):  # an array of objects
                self._replace(target, state[2])
            else:
                target.__setstate__(state)  # raises where the shape does not fit the data
        elif type(target) is dict:
            target.update(state)  # the attributes of a namespace
        elif not _has_notes(target, state):
            raise ForbiddenError(f"the state of a {type(target).__name__}")

    def load_bytearray8(self) -> None:
        """Handle BYTEARRAY8; Python's would fill memory of a size that the file makes up."""
        (size,) = struct.unpack("<Q", self.read(8))
        if size > self._size:
            raise DamagedError(f"an array of {size} bytes is larger than the file")
        array = bytearray(size)
        self.readinto(array)
        self.append(array)

    def _replace(self, value: Any, other: Any) -> None:
        self.stack[-1] = other
        self.memo.update({i: other for i, known in self.memo.items() if known is value})

    dispatch: ClassVar[dict] = {
        **pickle._Unpickler.dispatch,
        pickle.BUILD[0]: load_build,
        pickle.BYTEARRAY8[0]: load_bytearray8,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
    }


def _set_item(target: dict, key: Any, value: Any) -> None:
    try:
        target[key] = value
    except TypeError:  # PyTorch's tensors are keys in old optimizers' states, arrays cannot be
        if not isinstance(target, dict):
            raise
        target[f"(key {len(target)})"] = value
