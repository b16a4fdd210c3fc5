"""What several tests call."""

import functools
from pathlib import Path

import models

import cv2
import numpy as np
import pytest

from weights import state

ROOT = Path(__file__).resolve().parent.parent


ONE_OF_EACH = ["RepVGGA0", "RepVGGA0-qa", "MobileOneS0", "RepViTM0_6", "RepGhost050", "FastViTT8"]


WITH_OTHER_BLOCKS = ["RepVGGB1g4", "MobileOneS4"]  # groups and squeeze-and-excitation


def slow_but(fast, values):
    """Values to parametrize a test with: `make test` runs it with those of `fast` alone.

    A tuple holds the values of several parameters.
    """
    assert all(v in values for v in fast)
    return [
        v
        if v in fast
        else pytest.param(*(v if isinstance(v, tuple) else (v,)), marks=pytest.mark.slow)
        for v in values
    ]


def change_architecture(monkeypatch, arch, network, config):
    """Replace what is registered as `arch`, for a test."""
    monkeypatch.setitem(models.registry._REGISTRY, arch, (network, config))
    shapes = functools.cache(state._shapes_and_head.__wrapped__)
    monkeypatch.setattr(state, "_shapes_and_head", shapes)


def write_image_folder(root, classes=("apple", "pear", "plum"), train=16, val=5, side=40):
    """Real JPEG files as root/{train,val}/<class>/<i>.jpg, classes told by their colour."""
    rng = np.random.default_rng(1)
    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = rng.integers(0, 120, (side, side + 2 * i, 3), np.uint8)
                image[..., label % 3] += 120
                assert cv2.imwrite(str(folder / f"{i}.jpg"), image)
    return root
