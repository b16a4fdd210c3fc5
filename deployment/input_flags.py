"""Flags that say what images a network takes, for exported files that do not say it themselves."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from utils import UserError


def add(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add --color, --mean, --std and --class-names in a group, and return the group."""
    images = parser.add_argument_group("preprocessing of the images")
    images.add_argument(
        "--color",
        choices=("rgb", "bgr"),
        help="colour order of the images that the network expects: %(choices)s (default: the "
        "model file's)",
    )
    for flag, what in (("--mean", "mean"), ("--std", "standard deviation")):
        images.add_argument(
            flag,
            type=float,
            nargs=3,
            metavar=("R", "G", "B"),
            help=f"{what} of each channel in the network's order, for pixels from 0 to 1 or, where "
            "a value is above 1, from 0 to 255 (default: the model file's)",
        )
    images.add_argument(
        "--class-names",
        metavar="FILE",
        help="text file with a class name in each line, or JSON file with a list of them "
        "(default: the model file's)",
    )
    return images


def read(args: argparse.Namespace) -> dict[str, tuple[Any, str]]:
    """Return what flags state: field of a Preprocessing, or "classes" -> its value, and the flag.

    --size and --crop-ratio count too. Raises UserError for a mean and a deviation of different
    pixels, and for class names that cannot be read.
    """
    mean, std = args.mean or (0.0,), args.std or (0.0,)
    if 0 < max(mean) <= 1 < max(std):
        raise UserError(
            f"--mean {mean[0]:g} ... is for pixels from 0 to 1, and --std {std[0]:g} ... for those "
            "from 0 to 255; give both for the same pixels"
        )
    scale = 255.0 if max(*mean, *std) <= 1 else 1.0
    given = {
        "color": args.color and args.color.upper(),
        "mean": args.mean and tuple(value * scale for value in args.mean),
        "std": args.std and tuple(value * scale for value in args.std),
        "size": args.size,
        "crop_ratio": args.crop_ratio,
        "classes": class_names(args.class_names),
    }
    flags = {"crop_ratio": "--crop-ratio", "classes": "--class-names"}
    return {
        field: (value, flags.get(field, f"--{field}"))
        for field, value in given.items()
        if value is not None
    }


def class_names(path: str | None) -> list[str] | None:
    """Return the class names in a file; raise UserError when it cannot be read or has none."""
    if path is None:
        return None
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        names = json.loads(text) if text.lstrip().startswith("[") else lines
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is neither UTF-8 text nor JSON"
        raise UserError(f"cannot read the class names in {path} ({reason})") from None
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path} holds no class names; give one in each line, or a JSON list")
    return names
