"""Mixup and cutmix."""

import numpy as np
import pytest

from data.augment import Augmentation
from data.mixing import mix


def batch(count=8, side=16):
    """Each image has the value of its number throughout; its label is that number."""
    images = np.zeros((count, 3, side, side), np.float32)
    images += np.arange(count, dtype=np.float32)[:, None, None, None]
    return images, np.arange(count, dtype=np.int32)


def mixed(key=0, count=8, **settings):
    images, labels = batch(count)
    return mix(images, labels, 10, Augmentation(**settings), np.random.default_rng(key))


def neighbour(number):
    return number ^ 1


@pytest.mark.parametrize("settings", [{}, {"mixup": 1, "mix_prob": 0}])
def test_off_means_one_hot(settings):
    images, targets = mixed(**settings)
    np.testing.assert_array_equal(images, batch()[0])
    np.testing.assert_array_equal(targets, np.eye(10, dtype=np.float32)[:8])
    assert targets.dtype == np.float32


@pytest.mark.parametrize("settings", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 1, "cutmix": 1}])
def test_the_labels_say_what_the_images_show(settings):
    for key in range(30):
        images, targets = mixed(key, **settings)
        np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)
        for number in range(8):
            keep, rest = targets[number, number], targets[number, neighbour(number)]
            assert keep + rest == pytest.approx(1, abs=1e-6)
            shown = keep * number + rest * neighbour(number)
            assert images[number].mean() == pytest.approx(shown, abs=1e-5)
        assert len({round(float(targets[i, i]), 6) for i in range(8)}) == 1


def test_cutmix_cuts_boxes_and_mixup_does_not():
    for key in range(20):
        images, _ = mixed(key, cutmix=1.0)
        assert set(np.unique(images[2])) <= {2, 3}
        inside = (images[2, 0] == 3).astype(int)
        rows, columns = inside.any(axis=1).sum(), inside.any(axis=0).sum()
        assert inside.sum() == rows * columns
        images, _ = mixed(key, mixup=1.0)
        assert np.ptp(images[2]) == 0


def test_the_switch_has_its_probability():
    cut = sum(
        np.ptp(mixed(key, mixup=1, cutmix=1, mix_switch_prob=0.3)[0][0]) > 0 for key in range(300)
    )
    assert 0.15 < cut / 300 < 0.4  # less than 0.3, as some boxes are empty or whole
    done = sum(mixed(key, mixup=1, mix_prob=0.7)[1][0, 0] < 1 for key in range(300))
    assert 0.62 < done / 300 < 0.78


def test_how_much_is_mixed_follows_the_beta_distribution():
    keeps = [mixed(key, mixup=0.2)[1][0, 0] for key in range(400)]
    assert 0.44 < np.mean(keeps) < 0.56
    assert np.var(keeps) == pytest.approx(0.25 / 1.4, rel=0.1)


@pytest.mark.parametrize("settings", [{"mixup": 0.8}, {"cutmix": 1.0}])
@pytest.mark.parametrize("world", [2, 4])
def test_shares_are_mixed_as_the_whole(settings, world):
    rng = np.random.default_rng(1)
    images = rng.standard_normal((8, 3, 16, 16)).astype(np.float32)
    labels = np.arange(8)

    def share(rank, size):
        part = slice(rank * size, (rank + 1) * size)
        key = np.random.default_rng(5)
        return mix(images[part].copy(), labels[part], 10, Augmentation(**settings), key)

    whole = share(0, 8)
    parts = [share(rank, 8 // world) for rank in range(world)]
    for one, several in zip(whole, zip(*parts, strict=True), strict=True):
        np.testing.assert_array_equal(one, np.concatenate(several))


def test_odd_and_empty_batches():
    images, targets = mixed(count=5, mixup=1.0)
    assert targets[4, 4] == 1 and (images[4] == 4).all() and targets[3, 3] < 1
    images, targets = mixed(count=0, cutmix=1.0)
    assert images.shape[0] == 0 and targets.shape == (0, 10)
