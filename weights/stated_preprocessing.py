"""What images go through before a network: said by flags, by the file, or assumed and said so.

Statements are mappings from a field of `Preprocessing`, or "classes", to its value and to where
that is from, for reports. Of several about one field, the strongest counts: a flag; the record in a
file exported here; timm's words in a config.json or in the arguments of a training; and at last the
habit of those whose layout the file has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from data.class_names import with_wnids
from data.transforms import Preprocessing
from utils import UserError, brief

Statements = Mapping[str, tuple[Any, str]]

LABELS = {
    "color": "colour order",
    "mean": "mean",
    "std": "std",
    "size": "size",
    "interpolation": "interpolation",
    "resize_backend": "resize backend",
    "crop_ratio": "crop ratio",
    "classes": "class names",
}
_FLAGS = {field: "--" + field.replace("_", "-") for field in LABELS} | {
    "classes": "--class-names",
    "size": "--size to convert_pretrained_weight.py",  # not all commands have it
}


def resolve(
    habit: Statements,
    *stronger: Statements,
    classes: int,
    path: str | PathLike,
    channels: int = 3,
) -> tuple[Preprocessing, list[str] | None, dict[str, str]]:
    """Return the preprocessing and class names that statements give, and where each is from.

    Args:
        habit, stronger: statements, the strongest last; `habit` is complete.
        classes: length of the logits, which the number of names must be.
        path: the file, for messages.
        channels: number of channels of the images, which the network decides.

    A stronger statement of the colour order alone reverses the weaker mean and deviation, for each
    colour keeps its own; but not those that are said without an order beside a network of BGR, for
    they may be in either. Raises UserError when a value is not possible.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    orders: dict[str, str | None] = {}  # of mean and deviation
    for statements in (habit, *stronger):
        color = statements.get("color", (values.get("color"), ""))[0]
        for field, order in orders.items():
            if order not in (None, color):
                values[field], orders[field] = _reversed(values[field]), color
        for field, (value, origin) in statements.items():
            values[field], origins[field] = value, origin
            if field in ("mean", "std"):
                orders[field] = color if color == "RGB" or "color" in statements else None
    names = values.pop("classes", None)
    if names is not None and len(names) != classes:
        raise UserError(
            f"{origins['classes']} has {len(names)} class names, but the network in {path} has "
            f"{classes} classes; give one name for each"
        )
    names = names and with_wnids(names)  # the classes of a folder of ImageNet have these
    for field in values:
        try:
            Preprocessing(**{field: values[field]})
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            said = brief(values[field])  # which is short, whatever the file holds
            raise UserError(
                f"{origins[field]} says that the {LABELS[field]} of {path} is {said}, "
                f"which is not possible here; say {_FLAGS[field]}"
            ) from None
    return Preprocessing(**values, channels=channels), names, origins


def check_color(path: str | PathLike, *statements: Statements) -> None:
    """Raise UserError unless a statement says the colour order of the file at `path`."""
    if not any("color" in said for said in statements):
        raise UserError(
            f"nothing says whether the network in {path} takes RGB or BGR images, for its tensors "
            "have names that networks of both kinds have; give --color rgb or --color bgr, here or "
            "to convert_pretrained_weight.py"
        )


def of_habit(preprocessing: Preprocessing, origin: str) -> dict[str, tuple[Any, str]]:
    """Return all fields of a Preprocessing as statements of one origin."""
    return {field: (value, origin) for field, value in vars(preprocessing).items()
            if field in LABELS}  # fmt: skip


def report(
    preprocessing: Preprocessing, classes: list[str] | None, origins: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Return (label, value and where it is from) for every field, as the commands print them."""
    rows: list[tuple[str, str]] = []
    for field, label in LABELS.items():
        if field == "classes":
            text = f"{len(classes)}, from {classes[0]!r} on" if classes else "none"
        else:
            value = getattr(preprocessing, field)
            text = " ".join(f"{v:g}" for v in value) if isinstance(value, tuple) else f"{value}"
        if field in origins:
            text += f" ({origins[field]})"
        rows.append((label, text))
    return rows


def lines(
    preprocessing: Preprocessing, classes: list[str] | None, origins: Mapping[str, str]
) -> list[str]:
    """Return the rows of `report` as lines; none where the file itself says everything."""
    if set(origins.values()) <= {"the file"}:
        return []
    return [f"{label}: {text}" for label, text in report(preprocessing, classes, origins)]


def of_flags(args: Any, size: int | None = None) -> dict[str, tuple[Any, str]]:
    """Return what the flags of `cli.PREPROCESSING` say, of parsed arguments.

    `size` is the side in pixels, of a command whose --size is that of the network's images. Mean
    and deviation are in the flags' order of colours, for pixels from 0 to 1 or, where a value is
    above 1, from 0 to 255. Raises UserError for a file of class names that cannot be read.
    """
    given = {field: getattr(args, field, None) for field in LABELS if field != "size"}
    mean, std = given["mean"] or (0.0,), given["std"] or (0.0,)
    kinds = ("from 0 to 1", "from 0 to 255")
    if 0 < max(mean) <= 1 < max(std) or 0 < max(std) < 1 < max(mean):  # 1 is a usual std for both
        mean_kind, std_kind = kinds if max(mean) <= 1 else kinds[::-1]
        raise UserError(
            f"--mean {mean[0]:g} ... is for pixels {mean_kind}, and --std {std[0]:g} ... for those "
            f"{std_kind}; give both for the same pixels"
        )
    scale = 255.0 if max(*mean, *std) <= 1 else 1.0
    for field in ("mean", "std"):
        if given[field] is not None:
            given[field] = scaled(given[field], scale)
    if given["color"] is not None:
        given["color"] = given["color"].upper()
    if (file := getattr(args, "class_names", None)) is not None:
        given["classes"] = read_class_names(file)
    said = {field: (value, _FLAGS[field]) for field, value in given.items() if value is not None}
    return said if size is None else {**said, "size": (size, "--size")}


def read_class_names(path: str | PathLike) -> list[str]:
    """Return the class names in a file: one a line, or a JSON list, or JSON with label_names.

    Raises UserError when the file cannot be read or holds no names.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(
            f"cannot read the class names in {path} ({reason}); give another --class-names"
        ) from None
    if text.lstrip()[:1] in ("[", "{"):
        names = from_json(text)
        names = names.get("label_names") if isinstance(names, dict) else names
    else:
        names = [line.strip() for line in text.splitlines() if line.strip()]
    if not are_names(names):
        raise UserError(f"{path} holds no class names; give one a line, or a JSON list of them")
    return names


# ---------------------------------------------------------------- values


def from_json(text: str) -> Any:
    """Return the value in a JSON text, None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def are_names(value: Any) -> bool:
    """Return whether a value from a file is a list of names."""
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)


def scaled(numbers: Any, scale: float) -> Any:
    """Return numbers times `scale` without the last digits, which are rounding errors."""
    try:
        return tuple(float(f"{float(number) * scale:.9g}") for number in numbers)
    except (TypeError, ValueError, OverflowError):
        return numbers


def _reversed(numbers: Any) -> Any:
    return numbers[::-1] if isinstance(numbers, tuple | list) else numbers
