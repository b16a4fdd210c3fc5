"""Mixup and cutmix: mixing the images of a batch in pairs, and their labels with them."""

from __future__ import annotations

import math

import numpy as np

from .augment import Augmentation


def mix(
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    augmentation: Augmentation,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Mix a batch by mixup (Zhang et al., ICLR 2018) or cutmix (Yun et al., ICCV 2019), or neither.

    Each image is mixed with its neighbour: 0 with 1, 2 with 3 and so on; in a batch in random order
    that is a random image. With the same `rng` on all ranks the result is therefore the same
    whether one rank has the batch or several have shares of it of even size. A last image without
    a neighbour is left as it is.

    Args:
        images: float32 [B, 3, H, W]; changed in place.
        labels: int [B].
        num_classes: number of columns of the targets.
        augmentation: its mixup, cutmix, mix_prob and mix_switch_prob are used.
        rng: source of the random choices.

    Returns:
        The images, and soft targets, float32 [B, num_classes]; each row sums to 1.
    """
    targets = np.zeros((len(labels), num_classes), np.float32)
    targets[np.arange(len(labels)), labels] = 1
    paired = len(images) // 2 * 2
    left, right = images[0:paired:2], images[1:paired:2]
    # always drawn, in this order, so that ranks with fewer images draw the same
    mixed, cut = rng.random() < augmentation.mix_prob, rng.random() < augmentation.mix_switch_prob
    cut = augmentation.cutmix > 0 and (cut or augmentation.mixup == 0)
    alpha = augmentation.cutmix if cut else augmentation.mixup
    if not mixed or alpha == 0:
        return images, targets
    keep = rng.beta(alpha, alpha)  # share of its own pixels that an image keeps
    if cut:
        height, width = images.shape[2:]
        rows, columns = (_span(side, math.sqrt(1 - keep), rng) for side in (height, width))
        for one, other in zip(left, right, strict=True):
            box = one[:, rows, columns].copy()
            one[:, rows, columns] = other[:, rows, columns]
            other[:, rows, columns] = box
        cut_out = (rows.stop - rows.start) * (columns.stop - columns.start)
        keep = 1 - cut_out / (height * width)
    else:
        for one, other in zip(left, right, strict=True):
            difference = (other - one) * np.float32(1 - keep)
            one += difference
            other -= difference
    swapped = targets.copy()
    swapped[0:paired:2], swapped[1:paired:2] = targets[1:paired:2], targets[0:paired:2]
    return images, np.float32(keep) * targets + np.float32(1 - keep) * swapped


def _span(side: int, part: float, rng: np.random.Generator) -> slice:
    """Return the span of `part` of a side about a random centre, cut off at the border."""
    centre, half = rng.integers(side), int(side * part) // 2
    return slice(max(0, centre - half), min(side, centre + half))
