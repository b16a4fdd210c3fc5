"""The total stride: its down-samplings, its multiply-adds, and where it is recorded."""

import models
from models import equivalence, init

import megengine as mge
import numpy as np
import pytest

from tests.support import ONE_OF_EACH, slow_but

# RepVGG for CIFAR as chenyaofo/pytorch-cifar-models has it, counted on the original: parameters and
# multiply-adds of 32 px (train, deploy)
CIFAR = {
    ("RepVGGA0", 10): (7_840_874, 7_041_194, 489_075_200, 440_168_960),
    ("RepVGGA1", 10): (12_824_202, 11_521_674, 851_325_440, 766_194_176),
    ("RepVGGA2", 10): (26_815_690, 24_105_034, 1_850_095_360, 1_665_087_232),
    ("RepVGGA0", 100): (7_956_164, 7_156_484, 489_190_400, 440_284_160),
    ("RepVGGA1", 100): (12_939_492, 11_636_964, 851_440_640, 766_309_376),
    ("RepVGGA2", 100): (26_942_500, 24_231_844, 1_850_222_080, 1_665_213_952),
}


@pytest.mark.parametrize("arch, classes", CIFAR)
def test_repvgg_for_cifar(arch, classes):
    with init.uninitialized():
        forms = [models.create(arch, classes, deploy, stride=8) for deploy in (False, True)]
    parameters, macs = zip(*(models.profile(form, 32) for form in forms), strict=True)
    assert (*parameters, *macs) == CIFAR[arch, classes]
    assert (forms[0].stage1[0].identity is None) == (arch == "RepVGGA2")


@pytest.mark.parametrize("stride", slow_but([16], [8, 16]))
@pytest.mark.parametrize("arch", ONE_OF_EACH)
def test_every_family_has_it_and_is_equal_after_fusion(arch, stride, rng):
    model = models.create(arch, 3, stride=stride)
    images = rng.standard_normal((2, 3, 2 * stride, 2 * stride)).astype(np.float32)
    maps = model.features(mge.Tensor(images))
    assert tuple(2 * stride // m.shape[2] for m in maps) == model.strides
    assert model.strides == (stride // 8, stride // 4, stride // 2, stride)
    equivalence.randomize(model, images)
    assert equivalence.compare(model, images).holds
    deployed = models.state_shapes(models.to_deploy(model))
    assert deployed == models.state_shapes(models.create(arch, 3, True, stride=stride))


@pytest.mark.parametrize("arch, sizes", [("FastViTT8", [64, 128, 256]), ("RepVGGA0", [64] * 3)])
def test_the_images_of_a_check_are_as_large_as_the_stride_asks_for(arch, sizes):
    with init.uninitialized():
        networks = [models.create(arch, 3, stride=stride) for stride in (8, 16, 32)]
    assert [network.check_size for network in networks] == sizes
    assert [equivalence.random_images(n, 32).shape[2] for n in networks] == sizes


def test_the_usual_stride_is_not_recorded():
    assert models.create("RepVGGA0", 3).options == {}
    assert models.create("RepVGGA0", 3, stride=32).options == {}
    model = models.create("RepViTM0_6", 3, stride=16, heads=1)
    assert model.options == {"heads": 1, "stride": 16}
    assert models.variant_name(model.arch, model.options) == "RepViTM0_6-stride16"
    assert models.variant_name("RepVGGA0", {}) == "RepVGGA0"
    with pytest.raises(ValueError, match="total stride is 4, but it can be 8, 16 or 32"):
        models.create("RepVGGA0", stride=4)
