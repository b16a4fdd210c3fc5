"""A trained network that the one in training learns from."""

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
    """Gives logits [N, C] for the batches of the network in training.

    Args:
        model: in either form; used in evaluation mode.
        own: what its weights expect.
        given: how the batches are normalized.
        name: architecture and digest of the file, which tell teachers apart.
    """

    def __init__(self, model: M.Module, own: Preprocessing, given: Preprocessing, name: str = ""):
        model.eval()
        self.model, self.name = model, name
        self.flip = own.color != given.color
        mean, std = (np.array(value) for value in (given.mean, given.std))
        if self.flip:
            mean, std = mean[::-1], std[::-1]
        self.scale = (std / own.std).astype(np.float32).reshape(3, 1, 1)
        self.shift = ((mean - own.mean) / own.std).astype(np.float32).reshape(3, 1, 1)

    def convert(self, images: np.ndarray) -> np.ndarray:
        """Images [N, 3, H, W] in the colour order and normalization that the teacher expects."""
        if self.flip:
            images = images[:, ::-1]
        return images * self.scale + self.shift

    def __call__(self, images: np.ndarray) -> mge.Tensor:
        return self.model(mge.Tensor(self.convert(images))).detach()


def open_teacher(text: str, classes: list[str], given: Preprocessing) -> Teacher:
    """The teacher that "ARCH:FILE" names, fused; FILE is anything that weights.catalog locates.

    Raises UserError when it is not to be had, or does not know just these classes.
    """
    arch, separator, file = text.partition(":")
    if not (arch and separator and file):
        raise UserError(f"--teacher {text} is not ARCH:FILE, as in RepVGGB1:best.pkl")
    try:
        arch = models.canonical_name(arch)
    except ValueError as error:
        raise UserError(f"--teacher {text}: {error}") from None
    path = catalog.locate(file)
    found = checkpoint.read(path, arch)
    model = weights.load(found, arch, len(classes), deploy=True)
    if found.classes is not None and found.classes != classes:
        raise UserError(
            f"the teacher {path} knows other classes than the data, such as {found.classes[0]!r}; "
            "give one that was trained on this data"
        )
    return Teacher(model, found.preprocessing, given, f"{arch}, sha256 {files.sha256(path)[:16]}")
