"""The last step from a file to a network: building the network and copying its tensors."""

from __future__ import annotations

from os import PathLike

import models
from models import init

import megengine as mge
import megengine.module as M
import numpy as np

from utils import say_once

from . import catalog
from .channels import with_input_channels
from .checkpoint import Checkpoint, CheckpointError, read
from .keymap import Tensors
from .state import misfits, without_head


def load(
    source: str | PathLike | Checkpoint,
    arch: str | None = None,
    num_classes: int | None = None,
    deploy: bool | None = None,
    *,
    entry: str | None = None,
    classifier: bool = True,
    in_chans: int | None = None,
    stride: int | None = None,
) -> M.Module:
    """Return the network in a checkpoint of any known layout, in training mode.

    Args:
        source: a file, a folder, an http(s) URL, the name of published weights such as
            "basecls:repvgg_a0", or what `checkpoint.read` returned.
        arch, num_classes: what the checkpoint must hold; None accepts what it says.
        deploy: True for the deploy form, fusing a train-form checkpoint; False for the train form,
            which a deploy-form checkpoint no longer has; None for the form of the checkpoint.
        entry: name of the set of weights to take from a file of several, as `checkpoint.read` does.
        classifier: False to accept a backbone without a classifier too, for its `features`; the
            classifier then has random weights.
        in_chans: number of channels of the images, to which the first kernels of a checkpoint for
            colour images are converted, see `channels.with_input_channels`; None for the
            checkpoint's.
        stride: total stride that the file must have, as `checkpoint.read` takes it.

    What was assumed of a file, as its tensors do not tell it, is printed to stderr.

    Raises utils.UserError when the file is missing, damaged or asks for code, and its subclasses
    CheckpointError and ConversionError when the file holds something else.
    """
    arch = models.canonical_name(arch) if arch else None
    if not isinstance(source, Checkpoint):
        source = read(catalog.locate(source), arch, entry=entry, color_matters=False, stride=stride)
    _check(source, arch, num_classes if source.num_classes else None, deploy)
    _say_what_is_assumed(source)
    if in_chans is not None:
        source, _ = with_input_channels(source, in_chans)
    if source.num_classes == 0:
        if classifier:
            raise CheckpointError(
                f"{source.path} is a backbone without a classifier; fine-tune it by train.py "
                "--pretrained, or load its features: weights.load(path, classifier=False)"
                + (f" ({source.note})" if source.note else "")
            )
        model, _ = _with_new_head(source, 1000 if num_classes is None else num_classes)
        return models.to_deploy(model) if deploy else model
    with init.uninitialized():
        fused = source.form == "deploy"
        model = models.create(source.arch, source.num_classes, fused, **source.options)
    load_state(model, source.state_dict, source.path)
    return models.to_deploy(model) if deploy else model


def load_for_fine_tuning(
    checkpoint: Checkpoint, arch: str, num_classes: int
) -> tuple[M.Module, list[str]]:
    """Return a train-form network for `num_classes` classes, and the names of dropped tensors.

    The weights are the checkpoint's. With another number of classes, and where it is a backbone
    without a classifier, the classifiers start from random weights, and their tensors in the
    checkpoint are dropped. Raises CheckpointError when the checkpoint is not of `arch` or is in
    deploy form.
    """
    _check(checkpoint, arch, deploy=False)
    if checkpoint.num_classes == num_classes:
        return load(checkpoint), []
    _say_what_is_assumed(checkpoint)
    return _with_new_head(checkpoint, num_classes)


def _with_new_head(checkpoint: Checkpoint, num_classes: int) -> tuple[M.Module, list[str]]:
    """Return a network with random classifiers, and the names of the tensors that they replace.

    Tensors of the head that a backbone's checkpoint lacks are random too.
    """
    fused = checkpoint.form == "deploy"
    model = models.create(checkpoint.arch, num_classes, fused, **checkpoint.options)
    state_dict = model.state_dict()
    dropped = [name for name in models.head_names(model) if name in checkpoint.state_dict]
    lacking = set(state_dict) - set(without_head(state_dict, checkpoint.state_dict))
    if checkpoint.num_classes:
        lacking = set(dropped)
    own = {name: value for name, value in state_dict.items() if name in lacking}
    load_state(model, {**checkpoint.state_dict, **own}, checkpoint.path)
    return model, dropped


def load_state(model: M.Module, state_dict: Tensors, path: str | PathLike) -> None:
    """Copy a state dict into a network made by `models.create`.

    Raises CheckpointError, naming `path`, unless the state dict has just the tensors of the
    network, in shapes that fit, and no variance is negative and every number finite: a ReLU may
    hide those that are not.
    """
    shapes = models.state_shapes(model)
    if problems := misfits(state_dict, shapes):
        raise CheckpointError(
            f"{path} does not fit {model.arch} with {model.num_classes} classes: {problems[0]}"
            + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")
        )
    for key, value in state_dict.items():
        if not np.isfinite(value).all() or (key.endswith("running_var") and value.min() < 0):
            raise CheckpointError(
                f"{path} cannot be used: {key} holds numbers that are not finite, or negative "
                "variances; give a checkpoint of a training that did not diverge"
            )

    def next_tensor(key: str, _: mge.Tensor) -> np.ndarray:
        mge._full_sync()  # otherwise all of them wait in MegEngine's queue as copies
        return state_dict[key].reshape(shapes[key])

    model.load_state_dict(next_tensor)


def _say_what_is_assumed(checkpoint: Checkpoint) -> None:
    if checkpoint.note is not None:
        say_once(f"note: {checkpoint.path}: {checkpoint.note}")


def _check(
    checkpoint: Checkpoint,
    arch: str | None = None,
    num_classes: int | None = None,
    deploy: bool | None = None,
) -> None:
    if arch not in (None, checkpoint.arch):
        raise CheckpointError(
            f"{checkpoint.path} is a checkpoint of {checkpoint.arch}, but {arch} was expected; "
            f"use --arch {checkpoint.arch} (from Python: {checkpoint.arch!r}) or another file"
        )
    if num_classes not in (None, checkpoint.num_classes):
        raise CheckpointError(
            f"{checkpoint.path} has {checkpoint.num_classes} classes, but {num_classes} were "
            "expected; use the data it was trained for or another file"
        )
    if deploy is False and checkpoint.form == "deploy":
        raise CheckpointError(
            f"{checkpoint.path} is in deploy form, but the train form was expected; give the "
            "train-form file it was fused from (from Python, deploy=True takes it as it is)"
        )
