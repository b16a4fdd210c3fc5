"""How networks start: what an image is can still be told after all of the untrained layers."""

import models
from models.mobileone import MobileOne
from models.repghost import RepGhost
from models.replknet import RepLKNet
from models.repvgg import RepVGG

import megengine as mge
import numpy as np
import pytest

WIDTH = (0.25, 0.25, 0.25, 0.25)
DEPTHS = {"A": (2, 4, 14, 1), "plus": (8, 14, 24, 1)}
NETWORKS = {
    "RepVGG": lambda: RepVGG(DEPTHS["A"], WIDTH, num_classes=10),
    "RepVGG-qa": lambda: RepVGG(DEPTHS["A"], WIDTH, block="qa", num_classes=10),
    "RepVGG, SE": lambda: RepVGG(DEPTHS["plus"], WIDTH, se="before", num_classes=10, stride=16),
    "RepVGGplus": lambda: RepVGG(DEPTHS["plus"], WIDTH, se="after", num_classes=10, stride=16),
    "MobileOne": lambda: MobileOne(WIDTH, branches=4, num_classes=10),
    "RepGhost": lambda: RepGhost(0.5, num_classes=10, stride=16),
    "RepViT": lambda: models.create("RepViTM0_6", 10, stride=16),
    "FastViT": lambda: models.create("FastViTT8", 10, stride=16),
    "RepLKNet": lambda: RepLKNet((32, 64, 128, 256), kernel_sizes=(7, 7, 7, 7), stride=16),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_an_untrained_network_tells_images_apart(kind, rng):
    mge.random.seed(0)
    network = NETWORKS[kind]()
    images = rng.standard_normal((16, 3, 32, 32)).astype(np.float32)
    alike = images + 0.1 * rng.standard_normal(images.shape).astype(np.float32)
    maps = network.features(mge.Tensor(np.concatenate([images, alike])))[-1].numpy()
    features, features_alike = np.split(maps.reshape(32, -1), 2)
    near = np.linalg.norm(features - features_alike, axis=1).mean()
    far = np.linalg.norm(features - np.roll(features, 1, axis=0), axis=1).mean()
    assert near < 0.35 * far, (near, far)
