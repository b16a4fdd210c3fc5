"""AutoAugment and RandAugment."""

import math
from itertools import pairwise

import numpy as np
import pytest

from data import policies
from data.policies import AutoAugment, Background, RandAugment, policy
from utils import UserError

BACKGROUND = Background((104, 116, 124), "bilinear")


def test_the_names_of_timm_are_understood():
    assert policy("none") is None
    assert policy("rand-m9-mstd0.5-inc1") == RandAugment(9, deviation=0.5, increasing=True)
    assert policy("rand-m9-mstd0.5") == RandAugment(9, 2, 0.5, 0.5)
    assert policy("rand-m14-n3-p1-mstdinf-mmax30-inc0") == RandAugment(14, 3, 1, math.inf, 30)
    assert policy("rand-mstd101").deviation == math.inf
    assert policy("v0") == AutoAugment(policies.PAIRS["v0"], 1)
    assert policy("v0-p0.3") == AutoAugment(policies.PAIRS["v0"], 0.3)


def test_a_share_of_the_images_is_augmented():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    rng = np.random.default_rng(0)
    half, whole = (
        sum((policy(name)(image, rng, BACKGROUND) != image).any() for _ in range(400))
        for name in ("v0-p0.5", "v0")
    )
    assert 0.4 < half / whole < 0.6


@pytest.mark.parametrize(
    "name",
    ["v7", "v0-p", "v0-p3", "v0-m3", "rand-x3", "rand-m", "rand-m9-", "augmix-m3", "rand-mnine"],
)
def test_other_names_are_refused(name):
    with pytest.raises(UserError, match=f"no augmentation policy '{name}' .*use none, v0, or"):
        policy(name)


def test_a_removed_policy_is_a_sentence_with_what_to_use(command, tmp_path):
    with pytest.raises(UserError, match="policy 'original' was removed: .*; use v0"):
        policy("original")
    recipe = tmp_path / "old.conf"
    recipe.write_text("auto-augment = original\n")
    for flags in ["--auto-augment", "original"], ["--recipe", recipe]:
        status, _, err = command("train", *flags)
        assert status == 2 and len(err.splitlines()) == 1
        assert "'original' was removed" in err and "use v0" in err


def test_levels():
    rng = np.random.default_rng(0)
    assert {policy("rand-m7").level(rng) for _ in range(9)} == {7}
    levels = [policy("rand-m9-mstd0.5").level(rng) for _ in range(500)]
    assert max(levels) == 10 and 8.8 < np.mean(levels) < 9.1 and 0.4 < np.std(levels) < 0.6
    levels = [policy("rand-m14-mstdinf-mmax30").level(rng) for _ in range(500)]
    assert min(levels) < 0.5 and 13.5 < max(levels) <= 14


@pytest.mark.parametrize("name", ["v0"])
def test_the_policies_are_whole(name):
    pairs = policies.PAIRS[name]
    assert len(pairs) == 25
    for pair in pairs:
        assert len(pair) == 2
        for operation, probability, level in pair:
            assert operation in policies.OPERATIONS
            assert 0 <= probability <= 1 and 0 <= level <= 10


@pytest.mark.parametrize("name", ["v0", "rand-m9-mstd0.5-inc1", "rand-m10-n4-p1"])
def test_every_image_stays_an_image(name):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (24, 32, 3), np.uint8)
    same = 0
    for key in range(100):
        found = policy(name)(image, np.random.default_rng(key), BACKGROUND)
        assert found.shape == image.shape and found.dtype == np.uint8
        same += np.array_equal(found, image)
    assert same < 50
    assert (same == 0) == (name == "rand-m10-n4-p1")


def test_randaugment_draws_from_fifteen_operations(monkeypatch):
    assert len(policies.RANDAUGMENT) == len(set(policies.RANDAUGMENT)) == 15
    seen = []
    for name in policies.OPERATIONS:
        monkeypatch.setitem(
            policies.OPERATIONS, name, lambda image, *_, name=name: seen.append(name) or image
        )
    rng = np.random.default_rng(0)
    for _ in range(1000):
        policy("rand-m9")(None, rng, BACKGROUND)
    assert set(seen) == set(policies.RANDAUGMENT)
    assert 900 < len(seen) < 1100  # 2 with a probability of 0.5 each


def distances(operation, image):
    """How far the levels 0 to 10 take an image from itself, over both signs."""
    found = []
    for level in range(11):
        both = (operation(image, level, np.random.default_rng(key), BACKGROUND) for key in range(8))
        found.append(np.mean([abs(other.astype(int) - image).mean() for other in both]))
    return found


@pytest.mark.parametrize(
    "name", ["posterize", "solarize", "color", "contrast", "brightness", "sharpness"]
)
def test_inc1_is_never_weaker_at_a_higher_level(rng, name):
    image = rng.integers(0, 256, (24, 32, 3), np.uint8)
    found = distances(policies.INCREASING[name], image)
    first = {"posterize": np.mean(image & 15)}.get(name, 0)  # 4 bits are left at level 0
    assert found[0] == pytest.approx(first) and found[10] > max(2, first)
    assert all(one <= other + 1e-9 for one, other in pairwise(found))


def test_the_ends_of_each_scale():
    image = np.full((10, 10, 3), 200, np.uint8)

    def value(name, level, table=policies.OPERATIONS):
        return table[name](image, level, np.random.default_rng(0), BACKGROUND)[5, 5, 0]

    assert value("brightness", 0) == 20 and value("brightness", 10) == 255
    assert value("brightness", 5) == 200
    assert value("posterize", 0) == 0 and value("posterize", 10) == 192
    assert value("solarize", 10) == 200 and value("solarize", 5) == 55
    assert value("solarize", 0, policies.INCREASING) == 200
    assert value("solarize", 5, policies.INCREASING) == 55
