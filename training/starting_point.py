"""The network with which a run starts: new, of weights to fine-tune, or of a run to resume."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import models

import megengine as mge
import megengine.module as M

import utils
import weights
from data import by_epoch
from data.transforms import TORCHVISION, Preprocessing
from weights import catalog, checkpoint, stated_preprocessing
from weights.channels import with_input_channels
from weights.checkpoint import Checkpoint


@dataclass
class StartingPoint:
    """The network with which a run starts, and where its weights are from.

    Attributes:
        model: network in train form.
        preprocessing: preprocessing of the images, in the colour order that the weights expect.
        saved: checkpoint that the weights are from, or None for random weights.
        notes: lines about where the weights and the preprocessing are from.
    """

    model: M.Module
    preprocessing: Preprocessing
    saved: Checkpoint | None = None
    notes: list[str] = field(default_factory=list)


def of_flags(args: argparse.Namespace, num_classes: int, resume_from: Path | None) -> StartingPoint:
    """Return the network that the flags of train.py ask for.

    Args:
        args: parsed arguments of train.py.
        num_classes: number of classes of the data.
        resume_from: checkpoint of the run to resume, or None for a new run.

    Raises UserError when a checkpoint cannot be read or does not fit.
    """
    mge.random.seed(args.seed)
    if resume_from is not None:
        return _resumed(args, num_classes, resume_from)
    if args.pretrained is not None:
        return _pretrained(args, num_classes)
    model = models.create(
        args.arch, num_classes, in_chans=args.in_chans or 3, stride=args.stride or 32
    )
    usual = stated_preprocessing.of_habit(TORCHVISION, "the default")
    return StartingPoint(model, _resolved(args, model, num_classes, usual, "the new network"))


def _resumed(args: argparse.Namespace, num_classes: int, path: Path) -> StartingPoint:
    # preprocessing as it was recorded, for resume.check to compare with what the flags say
    saved = checkpoint.read(path, args.arch, stride=args.stride)
    model = weights.load(saved, args.arch, num_classes, deploy=False)
    if args.in_chans not in (None, model.in_chans):
        raise utils.UserError(
            f"the run to resume, {path}, takes images of {model.in_chans} channels; leave out "
            f"--in-chans {args.in_chans}, or start a new run with another --tag"
        )
    recorded = stated_preprocessing.of_habit(saved.preprocessing, "the run")
    given = _resolved(args, model, num_classes, recorded, str(path))
    return StartingPoint(model, given, saved)


def _pretrained(args: argparse.Namespace, num_classes: int) -> StartingPoint:
    path = catalog.locate(args.pretrained)
    saved = checkpoint.read(
        path, args.arch, entry=args.entry, stride=args.stride, stated=_stated(args)
    )
    converted = None
    if args.in_chans is not None:
        saved, converted = with_input_channels(saved, args.in_chans)
    model, dropped = weights.load_for_fine_tuning(saved, args.arch, num_classes)
    kept = _kept(saved, args.pretrained, dropped)
    if converted:
        kept += f"; for images of {converted}"
    lines = stated_preprocessing.lines(saved.preprocessing, saved.classes, saved.origins)
    return StartingPoint(model, saved.preprocessing, saved, [kept, *lines])


def _stated(args: argparse.Namespace) -> stated_preprocessing.Statements:
    """Return the preprocessing that the flags state, with the size and the crop of this run."""
    return stated_preprocessing.of_flags(args) | {
        "size": (by_epoch.values(args.size)[-1], "this run's"),
        "crop_ratio": (args.crop_ratio, "this run's"),
    }


def _resolved(
    args: argparse.Namespace,
    model: M.Module,
    num_classes: int,
    usual: stated_preprocessing.Statements,
    path: str,
) -> Preprocessing:
    """Return the preprocessing that the flags state, and where they do not, the usual one.

    The classes are the data's; --class-names is about --pretrained.
    """
    stated = {field: value for field, value in _stated(args).items() if field != "classes"}
    given, _, _ = stated_preprocessing.resolve(
        usual, stated, classes=num_classes, channels=model.in_chans, path=path
    )
    return given


def _kept(saved: Checkpoint, source: str, dropped: list[str]) -> str:
    """Return the line about how much of the weights of `source` is kept."""
    kept = len(saved.state_dict) - len(dropped)
    if saved.num_classes == 0:
        return (
            f"starting from {source}: all {kept} tensors kept; it is a backbone, so the "
            "classifier starts from random weights"
        )
    if not dropped:
        return f"starting from {source}: all {kept} tensors kept"
    return (
        f"starting from {source}: {kept} tensors kept; dropped, as it has "
        f"{saved.num_classes} classes: {', '.join(dropped)}"
    )
