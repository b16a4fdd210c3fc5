"""Writing checkpoints in other repositories' layouts, with the preprocessing that they need."""

from __future__ import annotations

import json
import pickle
from collections import OrderedDict
from dataclasses import asdict, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from utils import write_atomically

from . import catalog, layouts, mmpretrain, model_card, recognition, recorded_preprocessing
from .checkpoint import Checkpoint
from .keymap import Tensors
from .state import with_reversed_channels

PICKLED = ("basecls", "megengine", "own", "port")  # the others' files are safetensors


def tensors(checkpoint: Checkpoint, layout: str) -> Tensors:
    """Return a checkpoint's tensors in the layout called `layout`.

    Raises ConversionError when the tensors, converted back, are not the same to the last bit.
    """
    state_dict = checkpoint.state_dict
    exported = layouts.export(state_dict, checkpoint.arch, layout)
    stride = checkpoint.options.get("stride", 32)
    again = recognition.recognize(
        exported, checkpoint.path, checkpoint.arch, layout, stride=stride
    ).state_dict
    if any(not np.array_equal(again[key], value) for key, value in state_dict.items()):
        raise recognition.ConversionError(f"{layout} cannot hold {checkpoint.arch} exactly")
    return exported


def save(checkpoint: Checkpoint, layout: str, path: str | PathLike) -> None:
    """Write a checkpoint in the layout called `layout`, with a record of its preprocessing.

    The record is in the metadata of a safetensors file, and beside "state_dict" in a pickle. Raises
    ConversionError where that layout cannot hold the network.
    """
    exported = tensors(checkpoint, layout)
    if layout not in PICKLED:
        _save_safetensors(exported, _metadata(checkpoint), path)
        return
    content: dict[str, Any] = {
        "state_dict": OrderedDict(sorted(exported.items())),
        recorded_preprocessing.RECORD: asdict(checkpoint.preprocessing),
        recorded_preprocessing.STRIDE: checkpoint.options.get("stride", 32),
    }
    if checkpoint.classes is not None:
        content["classes"] = checkpoint.classes
    write_atomically(path, lambda file: pickle.dump(content, file))


def notes(checkpoint: Checkpoint, layout: str) -> list[str]:
    """Return what is to be said of a checkpoint in the layout called `layout`, or "hf"."""
    said = []
    note = mmpretrain.note_of_export(checkpoint.arch, checkpoint.form)
    if layout == "mmpretrain" and note is not None:
        said.append(note)
    if checkpoint.activation_ranges is not None:
        said.append(
            "the activation ranges of the quantization-aware training are not in this file; give "
            f"{checkpoint.path} itself to quantize.py"
        )
    if "stride" in checkpoint.options:
        said.append(
            f"the network has a total stride of {checkpoint.options['stride']}, which the tensors "
            "do not tell: other projects' code has 32, unless its strides are changed"
        )
    if layout == "hf" and is_reversed_for_hub(checkpoint):
        said.append("as timm feeds RGB images, the first kernels take them in this folder")
    elif checkpoint.preprocessing.channels != 1:
        color = checkpoint.preprocessing.color
        said.append(f"the network expects {color} images, also in this layout")
    return said


def save_for_hub(checkpoint: Checkpoint, folder: str | PathLike) -> list[Path]:
    """Write the folder that timm's "local-dir:" and the Hugging Face hub expect; return its files.

    They are config.json, model.safetensors and a model card, README.md. timm feeds RGB images: of a
    network for BGR, the input channels of the first kernels are exchanged, and a note of it in the
    metadata makes reading here exchange them back.

    Raises ConversionError as `assert_fits_hub` does, and where the folder has other files of these
    names.
    """
    published = assert_fits_hub(checkpoint)
    metadata = _metadata(checkpoint)
    shown = checkpoint
    if is_reversed_for_hub(checkpoint):
        metadata[recorded_preprocessing.CHANNELS] = "reversed"
        shown = replace(
            checkpoint,
            state_dict=with_reversed_channels(checkpoint.state_dict),
            preprocessing=checkpoint.preprocessing.in_color_order("RGB"),
        )
    folder = Path(folder)
    exported = tensors(shown, "timm")
    config = json.dumps(_config(shown, published.name), indent=2) + "\n"
    card = model_card.write(shown, published)
    files = [folder / name for name in ("config.json", "model.safetensors", "README.md")]
    _assert_replaceable(files[0], '"architecture"')
    _assert_replaceable(files[2], "library_name: timm")
    _save_safetensors(exported, metadata, files[1])
    write_atomically(files[0], lambda file: file.write(config.encode()))
    write_atomically(files[2], lambda file: file.write(card.encode()))
    return files


def assert_fits_hub(checkpoint: Checkpoint) -> catalog.Published:
    """Return timm's own network of the same architecture.

    Raises ConversionError for an architecture or a total stride that timm lacks, for the deploy
    form, which timm cannot open from a folder, for a backbone, and for channels in an order that
    timm does not feed.
    """
    published = catalog.published("timm", checkpoint.arch)
    if published is None:
        names = [name for name in layouts.names(checkpoint.arch) if name != "timm"]
        raise recognition.ConversionError(
            f"timm has no {checkpoint.arch}; --export writes it in the layouts {', '.join(names)}"
        )
    if "stride" in checkpoint.options:
        raise recognition.ConversionError(
            f"timm has no {checkpoint.arch} with a total stride of {checkpoint.options['stride']}, "
            f"which {checkpoint.path} has; use --export timm for the tensors alone"
        )
    if checkpoint.form == "deploy":
        raise recognition.ConversionError(
            f"{checkpoint.path} is in deploy form, which timm opens after fusing only; give the "
            "train form to --export hf, or use --export timm"
        )
    if not checkpoint.num_classes:
        raise recognition.ConversionError(
            f"{checkpoint.path} is a backbone without a classifier, which timm cannot open from a "
            "folder; use --export timm for the tensors alone"
        )
    channels = checkpoint.preprocessing.channels
    if channels > 3 and checkpoint.preprocessing.color == "BGR":
        raise recognition.ConversionError(
            f"{checkpoint.path} takes {channels} channels that begin with BGR, and timm feeds RGB; "
            "use --export timm for the tensors alone"
        )
    return published


def _assert_replaceable(file: Path, mark: str) -> None:
    """Raise ConversionError for an existing file without the mark of those that timm reads."""
    if file.exists() and mark.encode() not in file.read_bytes():
        raise recognition.ConversionError(
            f"{file} is there already, and is not of a model for timm; give --save-dir a folder "
            "of its own"
        )


def is_reversed_for_hub(checkpoint: Checkpoint) -> bool:
    """Return whether `save_for_hub` exchanges the input channels of the first kernels."""
    return (checkpoint.preprocessing.color, checkpoint.preprocessing.channels) == ("BGR", 3)


def _metadata(checkpoint: Checkpoint) -> dict[str, str]:
    metadata = {
        "format": "pt",
        recorded_preprocessing.RECORD: json.dumps(asdict(checkpoint.preprocessing)),
        recorded_preprocessing.STRIDE: str(checkpoint.options.get("stride", 32)),
    }
    if checkpoint.classes is not None:
        metadata["classes"] = json.dumps(checkpoint.classes)
    return metadata


def _save_safetensors(exported: Tensors, metadata: dict[str, str], path: str | PathLike) -> None:
    from safetensors.numpy import save as serialize

    content = {key: np.ascontiguousarray(value) for key, value in exported.items()}
    write_atomically(path, lambda file: file.write(serialize(content, metadata)))


# pattern of architectures -> timm's names of the first convolutions and of the classifiers
_LAYERS = {
    "RepVGG": (["stem.conv_kxk.conv", "stem.conv_1x1.conv"], ["head.fc"]),
    "MobileOne": (["stem.conv_kxk.0.conv", "stem.conv_scale.conv"], ["head.fc"]),
    "RepViT": (["stem.conv1.c"], ["head.head.l", "head.head_dist.l"]),
    "RepGhost": (["conv_stem"], ["classifier"]),
    "FastViT": (["stem.0.conv_kxk.0.conv", "stem.0.conv_scale.conv"], ["head.fc"]),
}


def _config(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """Return config.json for a network of RGB images, in timm's words."""
    said, state = checkpoint.preprocessing, checkpoint.state_dict
    first, classifiers = next(v for k, v in _LAYERS.items() if checkpoint.arch.startswith(k))
    if "heads" in checkpoint.options:  # one, where nothing was distilled
        classifiers = classifiers[:1]
    # the last feature map's, before RepGhost's layer between the pooling and the classifier
    features = next(
        state[key] for key in ("head.weight", "linear.weight", "head.linear.weight") if key in state
    )
    arguments: dict[str, Any] = {}
    if checkpoint.options.get("heads") == 1:
        arguments["distillation"] = False
    if checkpoint.options.get("legacy"):
        arguments["legacy"] = True
    if said.channels != 3:
        arguments["in_chans"] = said.channels
    config: dict[str, Any] = {
        "architecture": name,
        "num_classes": checkpoint.num_classes,
        "num_features": int(features.shape[1]),
        "pretrained_cfg": {
            "input_size": [said.channels, said.size, said.size],
            "pool_size": [-(-said.size // 32)] * 2,
            "crop_pct": said.crop_ratio,
            "crop_mode": "center",
            "interpolation": said.interpolation,
            "mean": [float(f"{value / 255:.9g}") for value in said.mean],
            "std": [float(f"{value / 255:.9g}") for value in said.std],
            "num_classes": checkpoint.num_classes,
            "first_conv": first if len(first) > 1 else first[0],
            "classifier": classifiers if len(classifiers) > 1 else classifiers[0],
        },
    }
    if arguments:
        config["model_args"] = arguments
    if checkpoint.classes is not None:
        config["label_names"] = checkpoint.classes
    return config
