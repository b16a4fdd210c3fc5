"""Tars and zips of class folders, and tars of one tar for each class, as ImageNet's is."""

from __future__ import annotations

import os
import re
from collections.abc import Collection

from utils import UserError, shown

from ..datasets import SPLITS, Dataset, NoSuchPartError
from ..folders import LeftOut, is_image
from ..members import Members
from . import lists
from .common import Sample, image_paths, ordered
from .places import Place, is_of_a_part

_ALL_SPLITS = {name for names in SPLITS.values() for name in names}


def read(place: Place, members: Members, labels: lists.Labels | None) -> Dataset:
    """Return the data set in one or several tars and zips.

    Folders that everything is in are no class; below them there may be those of the splits. Where
    several archives have images in no folder, each is a class. In a single one, these need `labels`
    or a list beside the archive.

    Raises UserError when there is no image, no label, or not the split.
    """
    left_out = LeftOut()
    paths = image_paths(members.names, left_out)
    where = place.paths[0]
    if not paths:
        raise UserError(f"{shown(where)} has no images in it; give a file that has some")
    archives = members.places[:, 0]
    if len({archives[i] for i, parts in paths.items() if len(parts) == 1}) == len(place.paths) > 1:
        if labels is None:
            _assert_no_shards(place, members, paths)
        for index, parts in paths.items():
            parts.insert(0, place.paths[archives[index]].stem)
    paths = _without_common_folders(paths, {*_ALL_SPLITS, *place.names})
    paths, split, whole = _of_split(paths, place)
    flat = [index for index, parts in paths.items() if len(parts) == 1]
    if labels is not None or len(flat) == len(paths):
        names = {index: parts[-1] for index, parts in paths.items()}
        place = place._replace(split=split, whole=whole)
        return lists.read(place, members, names, labels or lists.beside(where, place), left_out)
    left_out.outside += len(flat)
    samples = [
        Sample(parts[0].removesuffix(".tar"), "/".join(parts[1:]), index)
        for index, parts in paths.items()
        if len(parts) > 1
    ]
    _assert_once(samples, members, place)
    return ordered(samples, members, place.source, split, left_out, whole)


def _assert_once(samples: list[Sample], members: Members, place: Place) -> None:
    """Raise UserError where two archives have an image of the same class and name."""
    archives = members.places[:, 0]
    labels = {sample.label for sample in samples}
    if len({(sample.label, archives[sample.at]) for sample in samples}) == len(labels):
        return  # each class is in one archive
    seen: dict[tuple[str | int, str], int] = {}
    for sample in samples:
        other = archives[seen.setdefault((sample.label, sample.name), sample.at)]
        if other != archives[sample.at]:
            one, two = (shown(place.paths[i]) for i in (other, archives[sample.at]))
            raise UserError(
                f"{one} and {two} both have {shown(str(sample.label))}/{shown(sample.name)}; name "
                "the archives to take by a pattern, such as 'train-{a,b}.tar'"
            )


def _assert_no_shards(place: Place, members: Members, paths: Collection[int]) -> None:
    """Raise UserError where archives of images in no folder are parts of a whole, and no classes.

    Their names then differ in a number alone, and are those of a split, or each image has a
    companion, such as a caption.
    """
    numbered = {re.sub(r"\d+", "", path.stem) for path in place.paths}
    if len(numbered) > 1 or all(re.fullmatch(r"n\d{8}", path.stem) for path in place.paths):
        return
    others = {os.path.splitext(name)[0] for name in members.names if not is_image(name)}
    if all(map(is_of_a_part, place.paths)) or all(
        os.path.splitext(members.names[index])[0] in others for index in paths
    ):
        raise UserError(
            f"the images of {shown(place.paths[0])} and the others have no labels, neither by a "
            ".cls or .json file of their names nor by the folders that they are in; give archives "
            "whose images have, or label validation images by --val-list FILE"
        )


def _without_common_folders(
    paths: dict[int, list[str]], kept: Collection[str]
) -> dict[int, list[str]]:
    """Take folders that all images are in from the paths, but for splits and classes."""
    first = next(iter(paths.values()))
    while all(len(parts) > 2 and parts[0] == first[0] for parts in paths.values()):
        if first[0] in kept:
            break
        paths = {index: parts[1:] for index, parts in paths.items()}
        first = first[1:]
    return paths


def _of_split(paths: dict[int, list[str]], place: Place) -> tuple[dict[int, list[str]], str, bool]:
    """Return the paths of a split without its folder, its name, and whether there are no splits."""
    tops = {parts[0] for parts in paths.values() if len(parts) > 1}
    # "train" alone, beside others, may be a class, a vehicle
    are_splits = bool(tops) and tops <= _ALL_SPLITS
    are_splits |= all(tops & {*names} for names in SPLITS.values())
    for name in place.names:
        if name in tops and (are_splits or place.exact):
            inside = {i: parts[1:] for i, parts in paths.items() if parts[0] == name}
            return inside, f"{name}/", False
    if not place.whole:
        return paths, place.split, False
    if are_splits or place.exact:
        wanted = " or ".join(f"{name}/" for name in place.names)
        advice = "for training, --holdout 0.1 takes a tenth of train/"
        if place.exact:
            advice = f"give one of its folders to --split: {', '.join(sorted(map(shown, tops)))}"
        raise NoSuchPartError(f"{shown(place.source)} has no folder {wanted}; {advice}")
    return paths, place.split, True
