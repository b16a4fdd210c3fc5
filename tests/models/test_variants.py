"""Names and sizes of the networks: facts of the papers, counted from the live Modules."""

import re

import models
from models import equivalence, init

import megengine as mge
import megengine.module as M
import numpy as np
import pytest

from tests.support import slow_but

# parameters and multiply-adds at 224 px (train, deploy), and deploy tensors; measured on the
# original PyTorch implementations
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
    "MobileOneS0": (5_293_272, 2_078_504, 1_051_935_232, 275_110_400, 88),
    "MobileOneS1": (4_825_192, 4_764_840, 830_062_080, 825_057_024, 88),
    "MobileOneS2": (7_884_648, 7_808_168, 1_304_027_392, 1_298_426_496, 88),
    "MobileOneS3": (10_170_600, 10_078_312, 1_902_112_768, 1_895_790_592, 88),
    "MobileOneS4": (14_951_248, 14_838_352, 2_986_802_432, 2_979_269_760, 136),
    # train: two heads
    "RepViTM0_6": (2_808_932, 2_468_072, 386_059_360, 385_065_120, 142),
    "RepViTM0_9": (5_489_328, 5_067_056, 817_280_832, 815_617_344, 208),
    "RepViTM1_0": (7_302_796, 6_810_312, 1_108_077_600, 1_106_136_864, 208),
    "RepViTM1_1": (8_802_912, 8_244_312, 1_339_242_240, 1_337_124_608, 192),
    "RepViTM1_5": (14_644_432, 14_049_992, 2_276_968_192, 2_273_596_160, 336),
    "RepViTM2_3": (23_688_792, 22_926_792, 4_521_490_880, 4_515_958_720, 432),
    # deploy: all batch norms folded
    "RepGhost050": (2_313_968, 2_302_956, 43_314_720, 43_314_720, 192),
    "RepGhost058": (2_546_388, 2_533_576, 59_804_016, 59_804_016, 192),
    "RepGhost080": (3_278_968, 3_261_420, 95_518_948, 95_518_948, 192),
    "RepGhost100": (4_073_604, 4_051_648, 142_394_128, 142_394_128, 192),
    "RepGhost111": (4_539_984, 4_515_684, 170_124_224, 170_124_224, 192),
    "RepGhost130": (5_478_612, 5_450_052, 231_123_652, 231_123_652, 192),
    "RepGhost150": (6_575_336, 6_542_368, 301_315_856, 301_315_856, 192),
    "RepGhost200": (9_796_124, 9_752_212, 515_869_856, 515_869_856, 192),
    # deploy: batch norms and layer scales of the feed-forward networks folded too
    "FastViTT8": (4_026_232, 3_992_392, 528_592_896, 524_773_248, 106),
    "FastViTT12": (7_553_704, 7_502_952, 1_070_405_632, 1_065_212_416, 122),
    "FastViTS12": (9_473_576, 9_422_824, 1_378_686_976, 1_373_493_760, 122),
    # deploy: the batch norms before convolutions and the last one folded too
    "RepLKNet31B": (79_864_168, 79_388_776, 15_431_298_048, 15_353_525_248, 262),
    "RepLKNet31L": (172_671_016, 171_957_928, 32_780_739_072, 32_664_079_872, 262),
}
LARGE = ["RepLKNet31B", "RepLKNet31L"]  # a forward pass takes seconds
# multiply-adds (train, deploy) at the size of those that are trained at another one
AT_THEIR_SIZE = {
    "FastViTT8": (256, 690_149_376, 685_160_448),
    "FastViTT12": (256, 1_397_727_232, 1_390_944_256),
    "FastViTS12": (256, 1_800_380_416, 1_793_597_440),
}


def test_every_variant_is_listed():
    qa = models.list_models("*-qa")
    assert qa == [f"{name}-qa" for name in TABLE if re.match("RepVGG[ABD]", name)]
    assert [name for name in models.list_models() if name not in qa] == list(TABLE)
    assert models.list_models("repvggb?g4") == ["RepVGGB1g4", "RepVGGB2g4", "RepVGGB3g4"]
    assert models.list_models("nothing*") == []
    assert models.list_models("fastvit_t*") == ["FastViTT8", "FastViTT12"]
    assert models.list_models("repvgg_b[1-2]") == models.list_models("RepVGG-B[12]") == [
        "RepVGGB1", "RepVGGB2"
    ]  # fmt: skip


# the others take seconds each
FAST = [name for name in TABLE if re.match("RepVGGA|MobileOne|RepViTM0|RepGhost|FastViT", name)]


@pytest.mark.parametrize("arch", slow_but(FAST, [name for name in TABLE if name not in LARGE]))
def test_parameters_and_multiply_adds(arch):
    with init.uninitialized():
        train, deploy = models.create(arch), models.create(arch, deploy=True)
    found = [models.profile(network) for network in (train, deploy)]
    parameters, macs = zip(*found, strict=True)
    assert (*parameters, *macs, len(deploy.state_dict())) == TABLE[arch]


@pytest.mark.slow
@pytest.mark.parametrize("arch", LARGE)
def test_parameters_and_multiply_adds_of_a_large_network(arch):
    """By those at 32 px, where each map has 1/49 of the positions that it has at 224."""
    parameters, macs = [], []
    for deploy in (False, True):
        with init.uninitialized():
            model = models.create(arch, deploy=deploy)
        counted, classifier = models.profile(model, 32), model.linear.weight.size
        parameters.append(counted.parameters)
        macs.append(49 * (counted.macs - classifier) + classifier)
    assert (*parameters, *macs, len(model.state_dict())) == TABLE[arch]


@pytest.mark.parametrize("arch", AT_THEIR_SIZE)
def test_multiply_adds_at_another_size(arch):
    size, *macs = AT_THEIR_SIZE[arch]
    with init.uninitialized():
        networks = models.create(arch), models.create(arch, deploy=True)
    assert [models.profile(network, size).macs for network in networks] == macs


@pytest.mark.parametrize(
    # parameters in training: 15.81 M are what the authors' log says of B0
    "arch, parameters",
    [("RepVGGB0-qa", 15_808_616), ("RepVGGB1g4-qa", 39_947_368)],
)
def test_a_qa_variant_is_deployed_as_its_twin(arch, parameters):
    with init.uninitialized():
        train, twin = models.create(arch), models.create(arch.removesuffix("-qa"), deploy=True)
        deploy = models.create(arch, deploy=True)
    _, deploy_parameters, macs, _, _ = TABLE[twin.arch]
    assert models.profile(train) == (parameters, macs)
    assert models.profile(deploy).parameters == deploy_parameters
    shapes = [models.state_shapes(network) for network in (deploy, twin)]
    assert shapes[0] == shapes[1]


def test_profile_leaves_the_model_alone(tiny):
    model = tiny()
    before = {key: value.copy() for key, value in model.state_dict().items()}
    model.eval()
    square, wide = models.profile(model, 64), models.profile(model, (64, 128))
    assert wide.parameters == square.parameters and wide.macs > square.macs
    assert models.profile(model, np.int64(64)) == square
    assert not model.training
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[key])


@pytest.mark.parametrize("name", ["repvgg_a0", "RepVGG-A0", "REPVGGA0", "RepVGGA0", "rep.vgg.a0"])
def test_look_up_ignores_case_and_separators(name):
    assert models.canonical_name(name) == "RepVGGA0"


@pytest.mark.parametrize(
    "name, arch",
    [
        ("repvit_m0_9", "RepViTM0_9"),
        ("repghost_100", "RepGhost100"),
        ("repvgg_a0_qa", "RepVGGA0-qa"),
        ("fastvit_t8", "FastViTT8"),
        ("FastViT-T8", "FastViTT8"),
        ("replknet_31b", "RepLKNet31B"),
    ],
)
def test_other_spellings(name, arch):
    assert models.canonical_name(name) == arch


@pytest.mark.parametrize("deploy", [False, True])
@pytest.mark.parametrize("arch", ["MobileOneS0", "RepViTM0_6", "RepGhost050", "FastViTT8"])
def test_features_of_the_other_families(arch, deploy, images):
    model = models.create(arch, 3, deploy=deploy)
    model.eval()
    maps = model.features(mge.Tensor(images))
    assert tuple(m.shape[1] for m in maps) == model.num_features
    assert tuple(64 // m.shape[2] for m in maps) == model.strides == (4, 8, 16, 32)
    assert model(mge.Tensor(images[:, :, :40])).shape == (4, 3)


def test_repvit_has_two_heads_in_training_and_their_mean_in_evaluation(images):
    model = models.create("RepViTM0_6", 3)
    outputs = model(mge.Tensor(images))
    assert set(outputs) == {"main", "distilled"} and outputs["main"].shape == (4, 3)
    model.eval()
    pooled = mge.functional.mean(model.features(mge.Tensor(images))[-1], axis=(2, 3))
    mean = (model.head(pooled).numpy() + model.head_dist(pooled).numpy()) / 2
    np.testing.assert_allclose(model(mge.Tensor(images)).numpy(), mean, atol=1e-6)


def test_a_classifier_of_repvits_own_takes_the_place_of_both_heads(images):
    model = models.create("RepViTM0_6", 3)
    model.linear = M.Linear(320, 5)
    equivalence.randomize(model, images)
    assert model(mge.Tensor(images)).shape == (4, 5)
    assert equivalence.compare(model, images).holds
    deployed = models.state_shapes(models.to_deploy(model))
    assert deployed == models.state_shapes(models.create("RepViTM0_6", 5, deploy=True))


def test_the_heads_are_the_linear_layers_whatever_their_size():
    model = models.create("RepGhost050", 3)
    model.linear = M.Linear(1280, 5)
    assert set(models.head_names(model)) == {"linear.weight", "linear.bias"}
    model.linear = M.Linear(1280, 5, bias=False)
    assert models.head_names(model) == ["linear.weight"]


@pytest.mark.slow
def test_repvit_with_one_head_and_with_the_legacy_token_mixer(images):
    """Parameters: of the original implementations, one head at M0_6 and timm's legacy M1."""
    assert models.profile(models.create("RepViTM0_6", heads=1)).parameters == 2_487_292
    legacy = models.create("RepViTM0_9", legacy=True)
    assert models.profile(legacy).parameters == 5_485_248
    token = legacy.stage1[0].token
    equivalence.randomize(legacy, images)
    legacy.eval()
    x = mge.Tensor(np.random.default_rng(0).standard_normal((2, 48, 6, 6)).astype(np.float32))
    expected = token.dense(x) + token.pointwise.bn(token.pointwise.conv(x)) + x
    np.testing.assert_array_equal(token(x).numpy(), expected.numpy())
    assert equivalence.compare(legacy, images).holds
    single = models.create("RepViTM0_6", 3, heads=1, legacy=True)
    equivalence.randomize(single, images)
    assert single(mge.Tensor(images)).shape == (4, 3)
    assert equivalence.compare(single, images).holds


def test_an_unknown_name_lists_the_nearest():
    with pytest.raises(ValueError, match="unknown architecture 'RepVGGB9'.*RepVGGB2"):
        models.create("RepVGGB9")
    with pytest.raises(ValueError, match="at least one class"):
        models.create("RepVGGA0", num_classes=0)


@pytest.mark.parametrize(
    "arch, options, error, said",
    [
        ("RepVGGA0", {"block": "qa"}, ValueError, "no option 'block'.* in_chans, stride$"),
        ("RepVGGA0", {"heads": 1}, ValueError, "RepVGGA0 has no option 'heads'"),
        ("MobileOneS1", {"branches": 2}, ValueError, "has no option 'branches'"),
        ("RepViTM0_6", {"head": 1}, ValueError, "'head'.* in_chans, stride, heads, legacy$"),
        ("RepViTM0_6", {"heads": 3}, ValueError, "heads is 3, but .* it can be 1 or 2"),
        ("RepViTM0_6", {"legacy": "no"}, ValueError, "legacy is 'no', .* it can be False or True"),
        ("RepVGGA0", {"stride": 8.0}, TypeError, "stride is 8.0, but a whole number was expected"),
        ("RepVGGA0", {"num_classes": None}, TypeError, "num_classes is None, but a whole"),
    ],
)
def test_other_options_are_refused(arch, options, error, said):
    """Other arguments of a class would make another architecture under the same name."""
    with pytest.raises(error, match=said):
        models.create(arch, **options)


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
