"""Reading pickles as data: arrays and plain values are admitted, and nothing is ever executed."""

from __future__ import annotations

import pickle
from os import PathLike
from typing import Any

from utils import UserError

# What pickles of arrays, dicts, lists, numbers and strings name; the modules moved with NumPy 2.
_ADMITTED = {
    ("collections", "OrderedDict"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),  # how protocol 2 writes bytes
    *(
        (f"numpy.{core}.{module}", name)
        for core in ("core", "_core")
        for module, name in (
            ("multiarray", "_reconstruct"),
            ("multiarray", "scalar"),
            ("numeric", "_frombuffer"),
        )
    ),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise _ForbiddenError(f"{module}.{name}")
        return super().find_class(module.replace("numpy._core", "numpy.core"), name)


class _ForbiddenError(Exception):
    pass


def load(path: str | PathLike) -> Any:
    """The object in a pickle of arrays and plain values.

    Raises UserError when the file is missing, empty, truncated or no pickle, and, naming it, when
    it asks for anything else than arrays and plain values.
    """
    try:
        with open(path, "rb") as file:
            return _Unpickler(file).load()
    except _ForbiddenError as forbidden:
        raise UserError(
            f"{path} asks for {forbidden}, which is neither an array nor a plain value; "
            "it was refused and nothing in it was executed"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except Exception as error:  # a broken pickle can raise almost anything
        raise UserError(
            f"{path} is empty, truncated or not a checkpoint ({type(error).__name__}: {error}); "
            "give a file that was saved completely"
        ) from None
