"""Checkpoints: what they say, saving that loses nothing, and reading from a file of any layout.

A checkpoint file of this project is a pickle of arrays and plain values: those fields of
`Checkpoint` that are not notes on where it was read from.
"""

from __future__ import annotations

import pickle
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from typing import Any

import megengine.module as M
import numpy as np

from data.class_names import with_wnids
from data.transforms import Preprocessing
from utils import UserError, say_once, write_atomically

from . import (
    files,
    mmpretrain,
    recognition,
    recorded_preprocessing,
    replknet,
    stated_preprocessing,
    validity,
)
from .keymap import Tensors
from .own import NAME as OWN_LAYOUT
from .state import form_of, with_reversed_channels

OURS = "this project"  # the source of checkpoints in the layout written here


class CheckpointError(UserError):
    """A checkpoint that is not what was asked for; the message says what it is."""


@dataclass
class Checkpoint:
    """A network's weights, and all that is needed to build, feed and train it.

    Attributes:
        arch: name of the architecture.
        form: "train" or "deploy".
        num_classes: length of the logits; 0 for a backbone without a classifier.
        classes: names of the classes, if they are known.
        preprocessing: what images go through before the network.
        state_dict: name -> float array, in the names and shapes of a network made by models.create.
        training: what a run needs to go on exactly; only in latest.pkl.
        options: of models.create.
        activation_ranges: tensor of the ONNX file -> lowest and highest value; only after
            quantization-aware training.
        path: file that it was read from, for messages; not saved.
        source: whose layout the file is in, for reports; not saved.
        dropped: names of the file's tensors that were left out on purpose; not saved.
        entry: name of the set of weights in the file that this is; not saved.
        other_entries: names of the file's other sets of weights; not saved.
        origins: field of the preprocessing, or "classes" -> where its value is from, for reports;
            not saved.
        note: what was assumed of it, as its tensors do not tell it, or None; not saved.
    """

    arch: str
    form: str
    num_classes: int
    classes: list[str] | None
    preprocessing: Preprocessing
    state_dict: Tensors
    training: dict[str, Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    activation_ranges: dict[str, tuple[float, float]] | None = None
    path: PathLike | str = "the checkpoint"
    source: str = OURS
    dropped: list[str] = field(default_factory=list)
    entry: str | None = None
    other_entries: list[str] = field(default_factory=list)
    origins: dict[str, str] = field(default_factory=dict)
    note: str | None = None


_NOT_SAVED = ("path", "source", "dropped", "entry", "other_entries", "origins", "note")


def of_model(
    model: M.Module,
    preprocessing: Preprocessing,
    classes: list[str] | None = None,
    training: dict[str, Any] | None = None,
    activation_ranges: dict[str, tuple[float, float]] | None = None,
) -> Checkpoint:
    """Return the checkpoint of a network made by `models.create`, with copies of its tensors.

    The number of channels in the preprocessing becomes that of the network. Raises ValueError for a
    network that could not be read back, such as one whose classifier was replaced by another with
    another number of classes.
    """
    state_dict = {key: np.array(value) for key, value in model.state_dict().items()}
    checkpoint = Checkpoint(
        model.arch,
        form_of(state_dict),
        model.num_classes,
        classes,
        replace(preprocessing, channels=model.options.get("in_chans", 3)),
        state_dict,
        training,
        model.options,
        activation_ranges,
    )
    try:
        validity.check(vars(checkpoint))
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"a checkpoint of this {model.arch} could not be read back ({error}); correct what "
            "the message names, or save the state_dict() alone"
        ) from None
    return checkpoint


def save(checkpoint: Checkpoint, path: str | PathLike) -> None:
    """Write the file so that at any moment `path` is a complete checkpoint, the old or the new one.

    Raises UserError when it cannot be written; what stood at `path` is then untouched.
    """
    contents = {**checkpoint.__dict__, "preprocessing": asdict(checkpoint.preprocessing)}
    for name in _NOT_SAVED:
        del contents[name]
    # protocol 5 writes arrays as they lie in memory, without a copy of all of them
    write_atomically(path, lambda file: pickle.dump(contents, file, protocol=5))


def read(
    path: str | PathLike,
    arch: str | None = None,
    source: str | None = None,
    entry: str | None = None,
    stated: stated_preprocessing.Statements | None = None,
    color_matters: bool = True,
    stride: int | None = None,
) -> Checkpoint:
    """Return the checkpoint in a file, in the form that it has; others' layouts are converted.

    Where the file has several sets of weights, a line on stderr says which one was taken.

    Args:
        path: a file of any kind that weights.files reads, or a folder.
        arch: architecture to look for in another repository's file, where that is known.
        source: name of the repository in whose layout the file must be; None to recognize it.
        entry: name of the set of weights to take; None for the one that is meant for evaluation.
        stated: preprocessing and class names to use instead of the file's, as from
            `stated_preprocessing.of_flags`.
        color_matters: False where no image is to be read, so that a file which does not tell its
            colour order is no error.
        stride: total stride that the network must have; None for the one that the file tells.

    Raises UserError when the file is missing, broken or asks for code, or nothing tells its colour
    order, CheckpointError or weights.recognition.ConversionError when it holds something else.
    """
    contents = files.read(path)
    if _is_ours(contents.tree):
        if source not in (None, OWN_LAYOUT):
            raise CheckpointError(
                f"{path} is a checkpoint of this project, which says what it holds; leave the "
                f"source {source!r} out"
            )
        if entry is not None:
            raise CheckpointError(
                f"{path} is a checkpoint of this project, which has one set of weights; leave the "
                f"entry {entry!r} out"
            )
        checkpoint = _of_contents(contents.tree, path)
        _check_stride(path, stride, checkpoint.options.get("stride", 32))
        own = stated_preprocessing.of_habit(checkpoint.preprocessing, "the file")
        return _resolved(checkpoint, own, stated or {})
    recorded = recorded_preprocessing.stride(contents.tree, contents.metadata)
    _check_stride(path, stride, recorded)
    foreign = recognition.recognize(contents, path, arch, source, entry, stride or recorded)
    checkpoint = _with_preprocessing(foreign, contents, path, stated or {}, color_matters)
    if entry is None and checkpoint.other_entries:
        say_once(
            f"note: {path} has several sets of weights; {checkpoint.entry} was taken, and there is "
            f"also {', '.join(checkpoint.other_entries)}, which --entry NAME takes (from Python: "
            "entry=NAME)"
        )
    return checkpoint


def _with_preprocessing(
    foreign: recognition.Foreign,
    contents: files.Contents,
    path: str | PathLike,
    stated: stated_preprocessing.Statements,
    color_matters: bool,
) -> Checkpoint:
    """Return another repository's recognized checkpoint with its images' preprocessing.

    Raises UserError where nothing tells its colour order, and `color_matters`.
    """
    if contents.metadata.get(recorded_preprocessing.CHANNELS) == "reversed":
        foreign.state_dict = with_reversed_channels(foreign.state_dict)
    said = recorded_preprocessing.of_file(
        contents.tree, contents.metadata, contents.config, foreign.num_classes
    )
    grey = foreign.options.get("in_chans") == 1
    if color_matters and not grey and not foreign.tells_colour_order:
        stated_preprocessing.check_color(path, said, stated)
    habit, stronger = dict(foreign.habit), {**said, **stated}
    size, _ = stronger.get("size", habit["size"])
    if "crop_ratio" not in stronger:
        habit["crop_ratio"] = foreign.crop_ratio(size)
        if foreign.is_for_warped_images(size):
            foreign.add_note(replknet.note_of_warping(size))
    if "size" not in stronger and foreign.source in (replknet.PYTORCH, mmpretrain.REPLKNET):
        foreign.add_note(replknet.note_of_side(size))
    if "the file" in {origin for _, origin in said.values()}:  # exported here, it has no names
        habit.pop("classes", None)
    return _resolved(of_foreign(foreign, path), habit, said, stated)


def _check_stride(path: str | PathLike, wanted: int | None, own: int | None) -> None:
    """Raise CheckpointError when a file says that its total stride is not the one asked for."""
    if None not in (wanted, own) and wanted != own:
        raise CheckpointError(
            f"{path} has a total stride of {own}, but --stride {wanted} was asked for; leave "
            "--stride out (from Python: stride=) or give another file"
        )


def _resolved(checkpoint: Checkpoint, *statements: stated_preprocessing.Statements) -> Checkpoint:
    """Return a checkpoint with the preprocessing and the class names that statements give."""
    if not checkpoint.num_classes:  # names are of no use to a backbone
        if any(said.get("classes", ("", ""))[1].startswith("--") for said in statements):
            raise CheckpointError(
                f"{checkpoint.path} is a backbone without a classifier; leave --class-names out"
            )
        statements = tuple({k: v for k, v in said.items() if k != "classes"} for said in statements)
    found, classes, origins = stated_preprocessing.resolve(
        *statements,
        classes=checkpoint.num_classes,
        channels=checkpoint.preprocessing.channels,
        path=checkpoint.path,
    )
    if classes is None and checkpoint.classes is not None:
        classes, origins["classes"] = with_wnids(checkpoint.classes), "the file"
    return replace(checkpoint, preprocessing=found, classes=classes, origins=origins)


def _is_ours(contents: Any) -> bool:
    return isinstance(contents, dict) and {"arch", "form", "preprocessing"} <= contents.keys()


_UNREADABLE = (TypeError, KeyError, AttributeError, ValueError, OverflowError, RecursionError)


def _of_contents(contents: dict[str, Any], path: str | PathLike) -> Checkpoint:
    """Return the checkpoint that `save` wrote; raise CheckpointError where it cannot have."""
    try:
        settings: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list | tuple) else value
            for key, value in contents["preprocessing"].items()
        }
        saved: dict[str, Any] = {**contents, "preprocessing": Preprocessing(**settings)}
        if reserved := contents.keys() & {*_NOT_SAVED}:
            raise ValueError(f"it holds {', '.join(sorted(reserved))}")
        checkpoint = Checkpoint(**saved, path=path)
        validity.check(vars(checkpoint))
        # others may have made its weights smaller: networks compute in float32
        weights = {k: np.asarray(v, np.float32) for k, v in checkpoint.state_dict.items()}
        return replace(checkpoint, state_dict=weights)
    except _UNREADABLE as error:
        raise CheckpointError(
            f"{path} is not a checkpoint of this version of the project ({error}); convert the "
            "file that it was made from, or give another one"
        ) from None


def of_foreign(foreign: recognition.Foreign, path: str | PathLike) -> Checkpoint:
    """Return another repository's recognized checkpoint as one of this project.

    Its preprocessing is the habit of that repository.
    """
    habit, _, origins = stated_preprocessing.resolve(
        foreign.habit,
        classes=foreign.num_classes,
        channels=foreign.options.get("in_chans", 3),
        path=path,
    )
    return Checkpoint(
        foreign.arch,
        form_of(foreign.state_dict),
        foreign.num_classes,
        None,
        habit,
        foreign.state_dict,
        options=foreign.options,
        path=path,
        source=f"{foreign.source.name} ({foreign.source.title})",
        dropped=foreign.dropped,
        entry=foreign.entry,
        other_entries=foreign.others,
        origins=origins,
        note=foreign.note,
    )
