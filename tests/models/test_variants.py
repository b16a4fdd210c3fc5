"""Names and sizes of the networks: facts of the papers, counted from the live Modules."""

import megengine as mge
import numpy as np
import pytest

import models

# parameters and multiply-adds at 224 px (train, deploy), and deploy tensors; measured on the
# original PyTorch implementations (DingXiaoH/RepVGG)
TABLE = {
    "RepVGGA0": (9_108_968, 8_309_384, 1_512_581_120, 1_361_451_008, 46),
    "RepVGGA1": (14_092_264, 12_789_864, 2_626_488_320, 2_363_967_488, 46),
    "RepVGGA2": (28_210_600, 25_499_944, 5_685_345_280, 5_116_951_552, 46),
    "RepVGGB0": (15_817_960, 14_339_048, 3_397_191_680, 3_057_600_512, 58),
    "RepVGGB1": (57_415_016, 51_829_480, 13_128_089_600, 11_815_485_440, 58),
    "RepVGGB1g2": (45_782_376, 41_360_104, 9_788_375_040, 8_809_742_336, 58),
    "RepVGGB1g4": (39_966_056, 36_125_416, 8_118_517_760, 7_306_870_784, 58),
    "RepVGGB2": (89_022_376, 80_315_112, 20_418_170_880, 18_376_609_792, 58),
    "RepVGGB2g2": (70_846_376, 63_956_712, 15_199_866_880, 13_680_136_192, 58),
    "RepVGGB2g4": (61_758_376, 55_777_512, 12_590_714_880, 11_331_899_392, 58),
    "RepVGGB3": (123_085_288, 110_960_872, 29_120_696_320, 26_208_882_688, 58),
    "RepVGGB3g2": (96_911_848, 87_404_776, 21_606_338_560, 19_445_960_704, 58),
    "RepVGGB3g4": (83_825_128, 75_626_728, 17_849_159_680, 16_064_499_712, 58),
    "RepVGGD2se": (133_334_836, 120_387_572, 36_476_744_192, 32_829_551_104, 290),
    "RepVGGplusL2pse": (146_062_864, 127_151_960, 37_026_524_928, 32_836_311_040, 290),
}


def test_every_variant_is_listed():
    assert models.list_models() == list(TABLE)
    assert models.list_models("repvggb?g4") == ["RepVGGB1g4", "RepVGGB2g4", "RepVGGB3g4"]
    assert models.list_models("nothing*") == []


@pytest.mark.parametrize("arch", TABLE)
def test_parameters_and_multiply_adds(arch):
    train, deploy = models.create(arch), models.create(arch, deploy=True)
    found = [models.profile(network) for network in (train, deploy)]
    parameters, macs = zip(*found, strict=True)
    assert (*parameters, *macs, len(deploy.state_dict())) == TABLE[arch]


def test_profile_leaves_the_model_alone(tiny):
    model = tiny()
    before = {key: value.copy() for key, value in model.state_dict().items()}
    model.eval()
    square, wide = models.profile(model, 64), models.profile(model, (64, 128))
    assert wide.parameters == square.parameters and wide.macs > square.macs
    assert not model.training
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[key])


@pytest.mark.parametrize("name", ["repvgg_a0", "RepVGG-A0", "REPVGGA0", "RepVGGA0", "rep.vgg.a0"])
def test_look_up_ignores_case_and_separators(name):
    assert models.canonical_name(name) == "RepVGGA0"


def test_an_unknown_name_lists_the_nearest():
    with pytest.raises(ValueError, match="unknown architecture 'RepVGGB9'.*RepVGGB2"):
        models.create("RepVGGB9")
    with pytest.raises(ValueError, match="at least one class"):
        models.create("RepVGGA0", num_classes=0)


@pytest.mark.parametrize("deploy", [False, True])
@pytest.mark.parametrize("kind", ["dense", "plus"])
def test_features_are_the_stages_outputs(tiny, kind, deploy, images):
    model = tiny(kind, deploy=deploy)
    model.eval()
    maps = model.features(mge.Tensor(images))
    assert tuple(m.shape[1] for m in maps) == model.num_features == (16, 16, 32, 64)
    assert tuple(64 // m.shape[2] for m in maps) == model.strides == (4, 8, 16, 32)


def test_auxiliary_heads_exist_in_training_only(tiny, images):
    model = tiny("plus")
    outputs = model(mge.Tensor(images))
    assert set(outputs) == {"main", "stage1_aux", "stage2_aux", "stage3_first_aux"}
    assert all(logits.shape == (4, 10) for logits in outputs.values())
    model.eval()
    assert model(mge.Tensor(images)).shape == (4, 10)
    deployed = models.to_deploy(tiny("plus"))
    deployed.train()
    assert deployed(mge.Tensor(images)).shape == (4, 10)
