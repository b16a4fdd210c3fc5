"""Load the network to deploy, from a checkpoint or with random weights."""

from __future__ import annotations

from typing import Any

import models
from models import equivalence

import megengine.module as M

import weights
from data.transforms import Preprocessing
from utils import UserError, shown
from weights import catalog, checkpoint, files, stated_preprocessing


def load(
    path: str | None,
    arch: str | None = None,
    keep_branches: bool = False,
    entry: str | None = None,
    stated: stated_preprocessing.Statements | None = None,
    classifier: bool = True,
) -> tuple[M.Module, Preprocessing, dict[str, Any]]:
    """Return a network, its preprocessing, and the metadata to write into a file of it.

    Args:
        path: checkpoint in any layout, or a URL or name that `catalog.locate` accepts; None for
            random weights.
        arch: architecture; needed when there is no checkpoint or the checkpoint does not name it.
        keep_branches: return the train form instead of fusing it.
        entry: name of the set of weights to take from a file of several.
        stated: preprocessing and class names to use instead of the checkpoint's.
        classifier: whether the checkpoint must have a classifier.

    Raises UserError for a checkpoint that cannot be used.
    """
    if path is None:
        assert arch is not None  # one of both is given
        model = equivalence.random_network(arch)
        model = model if keep_branches else models.to_deploy(model)
        source: dict[str, Any] = {"source": "random weights"}
        preprocessing, classes = Preprocessing(), None
        num_classes = model.num_classes
    else:
        file = catalog.locate(path)
        contents = checkpoint.read(file, arch, entry=entry, stated=stated)
        if keep_branches and contents.form == "deploy":
            raise UserError(
                f"{file} is in deploy form, where no branches are left to keep; "
                "leave out --keep-branches, or give the train-form file it was fused from"
            )
        model = weights.load(contents, arch, deploy=not keep_branches, classifier=classifier)
        preprocessing, classes = contents.preprocessing, contents.classes
        source = {"source": shown(file.name), "source_sha256": files.sha256(file)}
        num_classes = contents.num_classes
        if set(contents.origins.values()) != {"the file"}:
            source["origins"] = contents.origins
    return model, preprocessing, {
        "arch": model.arch,
        "options": model.options,
        "form": "train" if keep_branches else "deploy",
        "num_classes": num_classes,
        "classes": classes,
        **source,
    }  # fmt: skip
