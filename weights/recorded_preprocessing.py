"""What files of weights record of the images that they are for, as statements.

Files exported here have a record; those of others say it in timm's words, in a config.json or in
the arguments of a training, or hold the names of the classes alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.staged import STRIDES

import numpy as np

from .stated_preprocessing import LABELS, are_names, from_json, scaled

RECORD = "preprocessing"  # of safetensors' metadata, and beside "state_dict" in an exported pickle
STRIDE = "total_stride"  # of both too
CHANNELS = "input_channels"  # of the metadata: "reversed" where not in the record's colour order


def of_file(
    tree: Any, metadata: Mapping[str, str], config: Any = None, num_classes: int | None = None
) -> dict[str, tuple[Any, str]]:
    """Return what a file says.

    Args:
        tree: what it holds: dicts, arrays and plain values.
        metadata: text that a safetensors file says about itself.
        config: contents of the config.json that is beside the file, if there is one.
        num_classes: length of the network's logits.
    """
    tree = tree if isinstance(tree, dict) else {}
    arguments, record = tree.get("args"), tree.get(RECORD)
    statements = of_mmengine(tree.get("meta"), num_classes)
    if isinstance(arguments, Mapping):
        statements |= of_timm(arguments, "the training's arguments in the file")
    statements |= of_config(config, "config.json")
    if isinstance(record, Mapping):
        statements |= of_record(record, tree.get("classes"))
    return statements | of_metadata(metadata)


def stride(tree: Any, metadata: Mapping[str, str]) -> int | None:
    """Return the total stride that a file exported here records; None where it records none."""
    said = metadata.get(STRIDE, tree.get(STRIDE) if isinstance(tree, dict) else None)
    return next((known for known in STRIDES if said in (known, str(known))), None)


def of_config(config: Any, origin: str) -> dict[str, tuple[Any, str]]:
    """Return what a config.json of timm's says."""
    config = config if isinstance(config, dict) else {}
    inner = config.get("pretrained_cfg")
    inner = inner if isinstance(inner, dict) else {}
    statements = of_timm({**config, **inner}, origin)
    names = config.get("label_names", inner.get("label_names"))
    return statements | ({"classes": (names, origin)} if are_names(names) else {})


def of_timm(said: Mapping[str, Any], origin: str) -> dict[str, tuple[Any, str]]:
    """Return the preprocessing in timm's words: a pretrained_cfg, or arguments of its training.

    Means and deviations are for pixels from 0 to 1 or, where a value is above 1, from 0 to 255. A
    value that is missing, None or empty says nothing, nor does the interpolation "random", which is
    of a training.
    """
    said = {key: _plain(value) for key, value in said.items()}
    values: dict[str, Any] = {}
    for field in ("mean", "std"):
        numbers = said.get(field)
        if isinstance(numbers, int | float):
            numbers = [numbers]
        if numbers:
            one = isinstance(numbers, list | tuple) and len(numbers) == 1
            values[field] = [*numbers] * 3 if one else numbers
    scale = 1.0 if any(map(_are_of_bytes, values.values())) else 255.0
    values = {field: scaled(numbers, scale) for field, numbers in values.items()}
    if said.get("imagenet_default_mean_and_std") is False:  # RepLKNet's training: .5 for all
        values = {"mean": (127.5,) * 3, "std": (127.5,) * 3}
    test_size = said.get("test_size")  # of RepLKNet's training, which evaluates at this size
    is_side = isinstance(test_size, int) and not isinstance(test_size, bool) and test_size > 0
    size = test_size if is_side else said.get("input_size") or said.get("img_size")
    if size:  # [channels, height, width], or the side
        height, width = ([size] * 2 if not isinstance(size, list | tuple) else [*size] * 2)[-2:]
        values["size"] = height if height == width else f"{height}x{width}"
    if said.get("interpolation") not in (None, "", "random"):
        values["interpolation"] = said["interpolation"]
    if said.get("crop_pct"):
        values["crop_ratio"] = said["crop_pct"]
    if said.get("crop_mode") not in (None, "", "center"):
        values["crop_ratio"] = said["crop_mode"]  # refused, as only the centre is ever cropped
    return {field: (value, origin) for field, value in values.items()}


def of_mmengine(meta: Any, num_classes: int | None) -> dict[str, tuple[Any, str]]:
    """Return the class names in the "meta" of a checkpoint of mmengine's or MMClassification's.

    They are those of the data set's type, such as ImageNet's, and count where there are as many of
    them as classes.
    """
    meta = meta if isinstance(meta, Mapping) else {}
    dataset = meta.get("dataset_meta")
    dataset = dataset if isinstance(dataset, Mapping) else {}
    names = dataset.get("classes", dataset.get("CLASSES", meta.get("CLASSES")))
    names = [*names] if isinstance(names, list | tuple) else []
    if not are_names(names) or len(names) != num_classes:
        return {}
    return {"classes": (names, "the file's dataset_meta")}


def of_metadata(said: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    """Return what the metadata of a safetensors file say that was exported here."""
    record, names = (from_json(said[key]) if key in said else None for key in (RECORD, "classes"))
    return of_record(record, names) if isinstance(record, dict) else {}


def of_record(record: Mapping[str, Any], names: Any = None) -> dict[str, tuple[Any, str]]:
    """Return the record that `weights.export` writes into a file, as statements."""
    plain = {field: _plain(value) for field, value in record.items() if field in LABELS}
    values = {k: tuple(value) if isinstance(value, list) else value for k, value in plain.items()}
    if are_names(names):
        values["classes"] = list(names)
    return {field: (value, "the file") for field, value in values.items()}


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _are_of_bytes(numbers: Any) -> bool:
    """Return whether some of the numbers are for pixels from 0 to 255."""
    try:
        return max(float(number) for number in numbers) > 1
    except (TypeError, ValueError, OverflowError):
        return False
