"""A trained network from which the network in training learns."""

from __future__ import annotations

import models

import megengine as mge
import megengine.module as M
import numpy as np

import weights
from data.transforms import Preprocessing
from utils import UserError
from weights import catalog, checkpoint, files


class Teacher:
    """A function from the batches of the network in training to the teacher's logits [N, C].

    Args:
        model: the teacher, in either form; used in evaluation mode.
        own: the preprocessing that its weights expect.
        given: the preprocessing of the batches.
        name: architecture and digest of the file, which tell teachers apart.
    """

    def __init__(self, model: M.Module, own: Preprocessing, given: Preprocessing, name: str = ""):
        model.eval()
        self.model, self.name = model, name
        self.flip = own.color != given.color
        mean, std = given.per_channel(given.mean), given.per_channel(given.std)
        if self.flip:
            mean, std = mean[::-1], std[::-1]
        own_mean, own_std = own.per_channel(own.mean), own.per_channel(own.std)
        self.scale = (std / own_std).astype(np.float32).reshape(-1, 1, 1)
        self.shift = ((mean - own_mean) / own_std).astype(np.float32).reshape(-1, 1, 1)

    def convert(self, images: np.ndarray) -> np.ndarray:
        """Return images [N, C, H, W] in the colour order and normalization of the teacher."""
        if self.flip:
            images = images[:, ::-1]
        return images * self.scale + self.shift

    def __call__(self, images: np.ndarray) -> mge.Tensor:
        return self.model(mge.Tensor(self.convert(images))).detach()


def open_teacher(text: str, classes: list[str], given: Preprocessing) -> Teacher:
    """Return the teacher that "ARCH:FILE" names, fused; FILE is anything weights.catalog locates.

    Raises UserError when it cannot be read or knows other classes than `classes`.
    """
    arch, separator, file = text.partition(":")
    if not (arch and separator and file):
        raise UserError(f"--teacher {text} is not ARCH:FILE, as in RepVGGB1:best.pkl")
    try:
        arch = models.canonical_name(arch)
    except ValueError as error:
        raise UserError(f"--teacher {text}: {error}") from None
    path = catalog.locate(file)
    saved = checkpoint.read(path, arch)
    model = weights.load(saved, arch, len(classes), deploy=True)
    if saved.classes is not None and saved.classes != classes:
        raise UserError(
            f"the teacher {path} knows other classes than the data, such as {saved.classes[0]!r}; "
            "give one that was trained on this data"
        )
    if saved.preprocessing.channels != given.channels:
        raise UserError(
            f"the teacher {path} takes images of {saved.preprocessing.channels} channels, and the "
            f"network in training {given.channels}; convert the teacher with --in-chans "
            f"{given.channels} first"
        )
    return Teacher(model, saved.preprocessing, given, f"{arch}, sha256 {files.sha256(path)[:16]}")
