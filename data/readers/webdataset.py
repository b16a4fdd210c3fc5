"""Shards of WebDataset: tars in which files of the same name up to its first dot are a sample.

The label is a .cls file, or a value in a .json file: a number from 0, or the name of a class.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress

from utils import UserError, shown

from ..datasets import Dataset
from ..folders import LeftOut
from ..members import Members
from .common import Sample, are_numbers, image_paths, ordered
from .places import Place

_KEYS = ("label", "cls", "class", "wnid", "synset", "class_name")  # of a label in .json


def read(place: Place, members: Members, texts: Mapping[int, str]) -> Dataset | None:
    """Return the data set in some shards; None where no image has a label of its own.

    Args:
        place: the shards.
        members: the files in them.
        texts: position in `members` -> content, for .cls and .json files.

    Raises UserError for an image without a label.
    """
    if not texts:
        return None
    labels: dict[tuple[int, str], str] = {}  # shard, sample -> label
    for index, text in texts.items():
        name = members.names[index]
        text = text.strip() if name.lower().endswith(".cls") else _in_json(text)
        key = int(members.places[index, 0]), _sample(name)
        if text and (key not in labels or name.lower().endswith(".cls")):
            labels[key] = text
    left_out = LeftOut()
    paths = image_paths(members.names, left_out)
    if not any((int(members.places[i, 0]), _sample(members.names[i])) in labels for i in paths):
        return None
    for kind in (".cls", ".json"):
        left_out.others.pop(kind, None)
    numbered = are_numbers(labels.values())
    samples = []
    for index, parts in paths.items():
        key = int(members.places[index, 0]), _sample(members.names[index])
        label = labels.get(key)
        if label is None:
            raise UserError(
                f"the image {shown(members[index])} has no label: no .cls of its name is there, "
                "and no .json with one; give whole shards"
            )
        samples.append(Sample(int(label) if numbered else label, "/".join(parts), index))
    return ordered(samples, members, place.source, place.split, left_out, place.whole)


def _sample(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _in_json(text: str) -> str:
    """Return the label in a JSON object; empty where there is none."""
    with suppress(ValueError, AttributeError):
        content = json.loads(text)
        for key in _KEYS:
            if isinstance(value := content.get(key), str | int):
                return str(value)
    return ""
