"""The training set and the validation set of a run, from the arguments of train.py."""

from __future__ import annotations

import argparse
from dataclasses import replace

import utils
from data import class_order, datasets, readers
from data.holdout import hold_out

from . import options


def of_flags(args: argparse.Namespace) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Return the training set, augmented as the flags say, and the validation set.

    Both have the same labels. Raises UserError when there is no such data.
    """
    if args.data is None:
        train, val = datasets.digits()
    else:
        train = class_order.in_imagenets_order(readers.open_dataset(args.data, "train"))
        if args.holdout is not None:
            train, val = hold_out(train, args.holdout, args.seed)
        elif train.whole and args.val_list is None:
            raise utils.UserError(
                f"nothing in {args.data} says which images are for validation; give --holdout 0.1 "
                "to take a tenth of all, or data with the parts train and val"
            )
        else:
            val = readers.open_dataset(args.data, "val", labels=args.val_list)
            if train.whole and val.whole:
                raise utils.UserError(
                    f"all images of {args.data} would be both for training and for validation; "
                    "give --holdout 0.1 instead of --val-list, or data with the parts train and val"
                )
            _check_known(val, train)
            val = class_order.with_class_order(val, len(train.classes), train.classes)
    return replace(train, augment=options.augmentation(args, train.augment)), val


def _check_known(val: datasets.Dataset, train: datasets.Dataset) -> None:
    """Raise UserError when validation images are of a class that no training image is of."""
    if val.numbered or class_order.are_imagenets_labels(val, len(train.classes), train.classes):
        return
    known = class_order.positions(val.classes, train.classes)
    unknown = sorted({*val.classes} - known.keys())
    if unknown:
        raise utils.UserError(
            f"the validation images of {val.name} have the class {unknown[0]!r}, which the "
            "training images lack; add training images of it, or remove or rename its folder"
        )
