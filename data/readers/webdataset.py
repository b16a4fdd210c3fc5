"""Shards of WebDataset: tars in which files of the same name up to its first dot are a sample.

The label is a .cls file, or a value in a .json file: a number from 0, or the name of a class.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress

from utils import UserError, shown

from ..class_names import are_numbers
from ..datasets import Dataset
from ..folders import LeftOut
from ..members import Members
from .common import Sample, image_paths, ordered
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
    labels = _labels(members, texts)
    left_out = LeftOut()
    paths = image_paths(members.names, left_out)
    images: dict[_Key, list[int]] = {}  # sample -> positions of its images
    for index in paths:
        images.setdefault(_key(members, index), []).append(index)
    if not images.keys() & labels.keys():
        return None
    for kind in (".cls", ".json"):
        left_out.others.pop(kind, None)
    numbered = are_numbers(labels.values())
    samples = []
    for key, positions in images.items():
        index = _image(members, positions, left_out)
        label = labels.get(key)
        if label is None:
            raise UserError(
                f"the image {shown(members[index])} has no label: no .cls of its name is there, "
                "and no .json with one; give whole shards"
            )
        samples.append(Sample(int(label) if numbered else label, "/".join(paths[index]), index))
    return ordered(samples, members, place.source, place.split, left_out, place.whole)


_Key = tuple[int, str]  # shard, and name of a sample in it


def _key(members: Members, index: int) -> _Key:
    """Return the sample that a file belongs to."""
    folder, slash, file = members.names[index].rpartition("/")
    return int(members.places[index, 0]), folder + slash + file.partition(".")[0]


def _labels(members: Members, texts: Mapping[int, str]) -> dict[_Key, str]:
    """Return sample -> label, which a .cls says, or else a .json.

    Raises UserError where two files of a kind give one sample different labels.
    """
    found: dict[str, dict[_Key, tuple[str, int]]] = {".json": {}, ".cls": {}}  # label and position
    for index, text in texts.items():
        kind = ".cls" if members.names[index].lower().endswith(".cls") else ".json"
        label = text.strip() if kind == ".cls" else _in_json(text)
        if label:
            first, at = found[kind].setdefault(_key(members, index), (label, index))
            if label != first:
                raise _not_one("labels", members, at, index)
    return {key: label for labels in found.values() for key, (label, _) in labels.items()}


def _image(members: Members, positions: list[int], left_out: LeftOut) -> int:
    """Return the position of a sample's image; images with a further word, as .seg.png, are others.

    Raises UserError where there are two.
    """
    ends = {index: members.names[index].rpartition("/")[2].split(".", 1)[1] for index in positions}
    plain = [index for index in positions if "." not in ends[index]]
    first, *others = plain or positions
    if others:
        raise _not_one("images", members, first, others[0])
    left_out.others.update("." + end for index, end in ends.items() if index != first)
    return first


def _not_one(what: str, members: Members, one: int, other: int) -> UserError:
    return UserError(
        f"a sample of a shard has two {what}, {shown(members[one])} and {shown(members[other])}; "
        "its name ends at the first dot, so give each sample a name without other dots"
    )


def _in_json(text: str) -> str:
    """Return the label in a JSON object; empty where there is none."""
    with suppress(ValueError, AttributeError):
        content = json.loads(text)
        for key in _KEYS:
            value = content.get(key)
            if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
                value = int(value)
            if isinstance(value, str | int):
                return str(value)
    return ""
