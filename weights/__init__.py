"""Networks from files: this project's checkpoints, and everybody else's layouts.

import weights
net = weights.load("best.pkl")                          # the network that the file holds
net = weights.load("RepVGG-A0-train.pth", deploy=True)  # another repository's, fused
"""

from __future__ import annotations

from os import PathLike

import megengine.module as M

from . import catalog, checkpoint

__all__ = ["load"]


def load(
    path: str | PathLike,
    arch: str | None = None,
    num_classes: int | None = None,
    deploy: bool | None = None,
) -> M.Module:
    """Return the network in a checkpoint of any known layout, in training mode.

    Args:
        path: a file, an http(s) URL, or the name of published weights such as "basecls:repvgg_a0".
        arch, num_classes: what the file must hold, where that is known.
        deploy: True for the deploy form, fusing a train-form file; False for the train form, which
            a deploy-form file no longer has; None for the form that the file is in.

    Raises utils.UserError where the file is missing, damaged, asks for code or holds something
    else.
    """
    return checkpoint.load_model(catalog.locate(str(path)), arch, num_classes, deploy)
