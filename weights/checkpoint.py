"""Checkpoints: what they say of themselves, saving that loses nothing, loading that checks.

A checkpoint is a pickle of arrays and plain values:

    arch, options (of models.create), form ("train" or "deploy"), num_classes,
    classes (names, or None), preprocessing (see data.transforms.Preprocessing),
    state_dict, training (only in latest.pkl: what a run needs to go on exactly),
    activation_ranges (only after quantization-aware training: tensor of the ONNX file -> lowest and
    highest value)

Every layout that weights.convert knows can be read too.
"""

from __future__ import annotations

import pickle
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import models
from models import init

import megengine as mge
import megengine.module as M
import numpy as np

from data.transforms import Preprocessing
from utils import UserError, write_atomically

from . import convert, files
from .keymap import reshaped


class CheckpointError(UserError):
    """A checkpoint that is not what was asked for; the message says what was found."""


@dataclass
class Checkpoint:
    """The contents of a checkpoint file."""

    arch: str
    form: str
    num_classes: int
    classes: list[str] | None
    preprocessing: Preprocessing
    state_dict: dict[str, np.ndarray]
    training: dict[str, Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    activation_ranges: dict[str, tuple[float, float]] | None = None
    path: PathLike | str = "the checkpoint"  # where it was read from, for messages; not saved


def of_model(
    model: M.Module,
    preprocessing: Preprocessing,
    classes: list[str] | None = None,
    training: dict[str, Any] | None = None,
    activation_ranges: dict[str, tuple[float, float]] | None = None,
) -> Checkpoint:
    """The checkpoint of a network made by `models.create`."""
    state = {key: np.array(value) for key, value in model.state_dict().items()}
    form = convert.form_of(state)
    return Checkpoint(
        model.arch,
        form,
        model.num_classes,
        classes,
        preprocessing,
        state,
        training,
        model.options,
        activation_ranges,
    )


# ---------------------------------------------------------------- saving


def save(checkpoint: Checkpoint, path: str | PathLike) -> None:
    """Write the file so that at any moment `path` is a complete checkpoint, the old or the new one.

    Raises UserError when it cannot be written; what stood at `path` is then untouched.
    """
    contents = {**checkpoint.__dict__, "preprocessing": asdict(checkpoint.preprocessing)}
    del contents["path"]
    # protocol 5 writes arrays as they lie in memory, without a copy of all of them
    write_atomically(path, lambda file: pickle.dump(contents, file, protocol=5))


# ---------------------------------------------------------------- loading


def read(path: str | PathLike, arch: str | None = None) -> Checkpoint:
    """The checkpoint in a file, in either form; another repository's is converted.

    `arch` is the architecture it must be of, where that is known. Raises UserError when the file is
    missing, broken or asks for code, CheckpointError or weights.convert.ConversionError when it
    holds something else.
    """
    contents = files.read(path)
    if is_ours(contents):
        try:
            preprocessing = Preprocessing(
                **{
                    key: tuple(value) if isinstance(value, list | tuple) else value
                    for key, value in contents["preprocessing"].items()
                }
            )
            found = Checkpoint(**{**contents, "preprocessing": preprocessing, "path": path})
            _check_values(found)
            return found
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise CheckpointError(
                f"{path} is not a checkpoint of this version of the project ({error})"
            ) from None
    return of_foreign(convert.recognize(contents, path, arch), path)


def _check_values(found: Checkpoint) -> None:
    """Raises ValueError or the like when a value is not what `save` writes."""
    if found.arch not in models.list_models():
        raise ValueError(f"its architecture is {found.arch!r}")
    if found.form not in ("train", "deploy"):
        raise ValueError(f"its form is {found.form!r}")
    odd = [key for key, value in found.state_dict.items() if value.dtype.kind != "f"]
    if odd:
        raise ValueError(f"{odd[0]} holds no floating-point numbers")
    rows = convert.class_count(found.state_dict)
    if found.num_classes != rows:
        raise ValueError(f"it says {found.num_classes} classes, its classifier {rows or 'none'}")


def is_ours(contents: Any) -> bool:
    """Whether a file's contents are a checkpoint as `save` writes it."""
    return isinstance(contents, dict) and {"arch", "form", "preprocessing"} <= contents.keys()


def of_foreign(foreign: convert.Foreign, path: str | PathLike) -> Checkpoint:
    """A recognized checkpoint of another repository as one of ours."""
    return Checkpoint(
        foreign.arch,
        convert.form_of(foreign.state_dict),
        foreign.num_classes,
        None,
        foreign.preprocessing,
        foreign.state_dict,
        options=foreign.options,
        path=path,
    )


def load_model(
    source: str | PathLike | Checkpoint,
    arch: str | None = None,
    num_classes: int | None = None,
    deploy: bool | None = None,
) -> M.Module:
    """The network in a checkpoint, in training mode.

    Args:
        source: a file, or what `read` made of it.
        arch, num_classes: what the checkpoint must be of; None takes what it says.
        deploy: True for the deploy form, fusing a train-form checkpoint; False for the train form;
            None for the form that the checkpoint has.

    Raises CheckpointError when the checkpoint is of something else.
    """
    arch = models.canonical_name(arch) if arch else None
    found = source if isinstance(source, Checkpoint) else read(source, arch)
    _check(found, arch, num_classes, deploy)
    with init.uninitialized():
        deployed = found.form == "deploy"
        model = models.create(found.arch, found.num_classes, deployed, **found.options)
    load_state(model, found.state_dict, found.path)
    return models.to_deploy(model) if deploy else model


def _check(
    found: Checkpoint,
    arch: str | None = None,
    num_classes: int | None = None,
    deploy: bool | None = None,
) -> None:
    if arch not in (None, found.arch):
        raise CheckpointError(
            f"{found.path} is a checkpoint of {found.arch}, but {arch} was expected; "
            f"use --arch {found.arch} or another file"
        )
    if num_classes not in (None, found.num_classes):
        raise CheckpointError(
            f"{found.path} has {found.num_classes} classes, but {num_classes} were expected; "
            "use the data it was trained for or another file"
        )
    if deploy is False and found.form == "deploy":
        raise CheckpointError(
            f"{found.path} is in deploy form, but the train form was expected; use --deploy 1 "
            "(from Python: deploy=True), or give the train-form file it was fused from"
        )


def load_for_fine_tuning(
    found: Checkpoint, arch: str, num_classes: int
) -> tuple[M.Module, list[str]]:
    """A train-form network `arch` for `num_classes` classes with the weights of `found`.

    With another class count the classifiers start anew. Returns the network, and the names of the
    tensors that were dropped for that. Raises CheckpointError for another architecture and for a
    deploy-form checkpoint.
    """
    _check(found, arch, deploy=False)
    if found.num_classes == num_classes:
        return load_model(found), []
    model = models.create(found.arch, num_classes, **found.options)
    dropped = [name for name in models.head_names(model) if name in found.state_dict]
    own = {name: value for name, value in model.state_dict().items() if name in dropped}
    load_state(model, {**found.state_dict, **own}, found.path)
    return model, dropped


def load_state(model: M.Module, state_dict: dict[str, np.ndarray], path: str | PathLike) -> None:
    """Copy a state dict into a network; it must have just its tensors, in their shapes."""
    wanted = models.state_shapes(model)
    problems = [f"{key} is missing" for key in wanted if key not in state_dict]
    problems += [f"{key} is unknown" for key in state_dict if key not in wanted]
    problems += [
        f"{key} has shape {state_dict[key].shape} instead of {shape}"
        for key, shape in wanted.items()
        if key in state_dict and reshaped(state_dict[key], shape) is None
    ]
    if problems:
        raise CheckpointError(
            f"{path} does not fit {model.arch} with {model.num_classes} classes: {problems[0]}"
            + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")
        )

    def next_tensor(key: str, _: mge.Tensor) -> np.ndarray:
        mge._full_sync()  # otherwise all of them wait in MegEngine's queue as copies
        return reshaped(state_dict[key], wanted[key])

    model.load_state_dict(next_tensor)


def newest(folder: str | PathLike, name: str) -> Path | None:
    """The latest written file called `name` below `folder`, or None."""
    files = Path(folder).rglob(name)
    return max(files, key=lambda file: file.stat().st_mtime, default=None)


def newest_best() -> Path:
    """The latest best.pkl under checkpoints/; raises UserError when there is none."""
    path = newest("checkpoints", "best.pkl")
    if path is None:
        raise UserError(
            "there is no best.pkl under checkpoints/; train first (python train.py) or give --model"
        )
    return path
