"""MobileOne's start: what an image is can still be told after all of the untrained layers."""

from models.mobileone import MobileOne

import megengine as mge
import numpy as np


def test_an_untrained_network_tells_images_apart(rng):
    mge.random.seed(0)
    network = MobileOne(width=(0.25, 0.25, 0.25, 0.25), branches=4, num_classes=10)
    images = rng.standard_normal((16, 3, 32, 32)).astype(np.float32)
    alike = images + 0.1 * rng.standard_normal(images.shape).astype(np.float32)
    maps = network.features(mge.Tensor(np.concatenate([images, alike])))[-1].numpy()
    features, features_alike = np.split(maps.reshape(32, -1), 2)
    near = np.linalg.norm(features - features_alike, axis=1).mean()
    far = np.linalg.norm(features - np.roll(features, 1, axis=0), axis=1).mean()
    assert near < 0.6 * far, (near, far)
