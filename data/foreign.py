"""Objects of a pickle that are no data: inert placeholders, and what is refused outright."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import numpy as np

# Modules whose functions run programs, change files or import code. A placeholder would do no harm
# either; but no training leaves them in a checkpoint, and whoever has such a file should know.
_DANGEROUS_PACKAGES = {
    *("os", "posix", "nt", "subprocess", "sys", "importlib", "ctypes", "multiprocessing", "pip"),
}
# without modules inside, so that a package of the same name is another one, somebody's own
_DANGEROUS_MODULES = {
    *("runpy", "pty", "shutil", "socket", "webbrowser", "commands", "popen2", "code"),
}
_DANGEROUS_BUILTINS = {
    *("eval", "exec", "execfile", "compile", "open", "file", "__import__", "input", "breakpoint"),
}


class Placeholder(dict):
    """What stands in for an object of a foreign class: what the pickle put into it, as a dict.

    Calling it, or adding to it, runs no code of the class, which is never imported.

    Attributes:
        name: module and name of the class or function.
    """

    name: ClassVar[str] = ""
    __hash__ = object.__hash__  # type: ignore[assignment]  # it may be a key or in a set
    __eq__ = object.__eq__

    def __new__(cls, *arguments: Any, **named: Any) -> Placeholder:
        self = super().__new__(cls)
        if arguments or named:
            dict.__setitem__(self, "(arguments)", [*arguments, *named.values()])
        return self

    def __init__(self, *arguments: Any, **named: Any):
        """Do nothing: `__new__` has kept the arguments, also where pickle calls it alone."""

    def __call__(self, *arguments: Any, **named: Any) -> Placeholder:
        return type(self)(*arguments, **named)

    def extend(self, items: Iterable) -> None:
        """Keep the items of a list or a set."""
        self.setdefault("(items)", []).extend(items)

    def append(self, item: Any) -> None:
        """Keep an item of a list."""
        self.extend([item])

    add = append

    def set_state(self, state: Any) -> None:
        """Keep the attributes of an object, or whatever else its class has as a state."""
        parts = state if isinstance(state, tuple) else (state,)
        for i, part in enumerate(parts):
            if isinstance(part, dict):
                super().update(part)
            elif part is not None:
                dict.__setitem__(self, f"(state {i})", part)


def placeholder(name: str) -> type[Placeholder]:
    """Return a new class of placeholders for what a pickle calls `name`."""
    return type("Placeholder", (Placeholder,), {"name": name})


def is_dangerous(module: str, name: str) -> bool:
    """Return whether a pickle that asks for this global is a program rather than data."""
    if module in ("builtins", "__builtin__"):
        return name.partition(".")[0] in _DANGEROUS_BUILTINS
    return module in _DANGEROUS_MODULES or module.partition(".")[0] in _DANGEROUS_PACKAGES


def walk(tree: Any) -> Iterator[Any]:
    """Yield `tree` and all that is in its dicts, lists, tuples and placeholders, each once."""
    seen: set[int] = set()
    left = [tree]
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        yield value
        if isinstance(value, dict):
            left.extend(reversed([*value.values()]))
            left.extend(key for key in value if isinstance(key, tuple | Placeholder))
        elif isinstance(value, list | tuple | set | frozenset):
            left.extend(reversed([*value]))


def names(tree: Any) -> list[str]:
    """Return the names of all foreign classes and functions in a tree, sorted."""
    return sorted({name for value in walk(tree) if (name := _name(value)) is not None})


def _name(value: Any) -> str | None:
    if isinstance(value, Placeholder):
        return value.name
    return value.name if isinstance(value, type) and issubclass(value, Placeholder) else None


def first_without_arrays(tree: Any) -> str | None:
    """Return the name of a foreign object in a tree without arrays; None where it has any."""
    first = None
    for value in walk(tree):
        if isinstance(value, np.ndarray) and value.ndim:
            return None
        first = first or _name(value)
    return first


def is_module(value: Any) -> bool:
    """Return whether a value stands in for a layer or a network of PyTorch or MegEngine."""
    return isinstance(value, Placeholder) and (
        "_parameters" in value or {"_modules", "training"} <= value.keys()
    )


def module_name(tree: Any) -> str | None:
    """Return the class of the first network that was pickled as a whole in a tree, or None."""
    return next((value.name for value in walk(tree) if is_module(value)), None)
