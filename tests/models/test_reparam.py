"""Fusion: equal outputs, a new model, no leftovers."""

import models
from models import equivalence, reparam
from models.layers import BatchNorm2d, Conv2d, ConvBN
from models.repvgg import QARepVGGBlock, RepVGGBlock

import megengine as mge
import megengine.functional as F
import megengine.module as M
import numpy as np
import pytest

KINDS = ["dense", "groups", "se", "plus", "qa", "qa, groups, se"]


def forward(model, images):
    model.eval()
    return model(mge.Tensor(images)).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_the_fused_network_is_equal_and_the_old_one_is_untouched(tiny, images, kind):
    model = tiny(kind)
    equivalence.randomize(model, images)
    before = {key: value.copy() for key, value in model.state_dict().items()}
    expected = forward(model, images)
    model.train()
    deployed = models.to_deploy(model)
    assert deployed.training and deployed is not model
    assert deployed.num_classes == 10 and deployed.arch == model.arch
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[key])
    found = forward(deployed, images)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("kind", KINDS)
def test_the_deploy_form_has_the_keys_of_a_network_built_deployed(tiny, kind):
    fused = models.to_deploy(tiny(kind)).state_dict()
    built = tiny(kind, deploy=True).state_dict()
    assert {k: v.shape for k, v in fused.items()} == {k: v.shape for k, v in built.items()}
    assert not any(word in key for key in fused for word in ("bn", "dense", "identity", "aux"))


def test_fusing_twice_equals_fusing_once(tiny, images):
    model = tiny("groups")
    equivalence.randomize(model, images)
    once = models.to_deploy(model)
    twice = models.to_deploy(once)
    assert twice is not once
    for key, value in once.state_dict().items():
        np.testing.assert_array_equal(value, twice.state_dict()[key])


def test_evaluation_mode_and_dtype_carry_over():
    block = RepVGGBlock(4, 4)
    block.eval()
    assert not models.to_deploy(block).reparam.training
    for branch in (block.dense, block.pointwise):
        half = branch.conv.weight.numpy().astype(np.float16)
        branch.conv.weight = mge.Parameter(half)
    fused = models.to_deploy(block)
    assert fused.reparam.weight.dtype == fused.reparam.bias.dtype == np.float16


def test_blocks_inside_a_bigger_module_are_fused(images):
    class Segmenter(M.Module):
        def __init__(self):
            super().__init__()
            self.encoder = M.Sequential(RepVGGBlock(3, 8, stride=2), RepVGGBlock(8, 8, groups=2))
            self.head = M.Conv2d(8, 2, 1)

        def forward(self, x):
            return self.head(self.encoder(x))

    model = Segmenter()
    equivalence.randomize(model, images)
    expected = forward(model, images)
    deployed = models.to_deploy(model)
    assert len(deployed.state_dict()) == 6
    np.testing.assert_allclose(forward(deployed, images), expected, atol=1e-4)


def test_fusion_is_computed_in_float64_and_rounded_once():
    block = RepVGGBlock(8, 8)
    rng = np.random.default_rng(0)
    equivalence.randomize(block, rng.standard_normal((8, 8, 6, 6)).astype(np.float32))
    kernel = np.zeros((8, 8, 3, 3))
    bias = np.zeros(8)
    for name, branch in (("dense", block.dense.conv), ("pointwise", block.pointwise.conv), ("", 0)):
        bn = getattr(block, name).bn if name else block.identity
        mean, var, gamma, beta = (
            t.numpy().astype(np.float64).ravel()
            for t in (bn.running_mean, bn.running_var, bn.weight, bn.bias)
        )
        t = gamma / np.sqrt(var + 1e-5)
        if name == "dense":
            kernel += branch.weight.numpy() * t[:, None, None, None]
        elif name == "pointwise":
            kernel[:, :, 1, 1] += branch.weight.numpy()[..., 0, 0] * t[:, None]
        else:
            kernel[np.arange(8), np.arange(8), 1, 1] += t
        bias += beta - mean * t
    fused = models.to_deploy(block).reparam
    np.testing.assert_array_equal(fused.weight.numpy(), kernel.astype(np.float32))
    np.testing.assert_allclose(fused.bias.numpy().ravel(), bias.astype(np.float32), rtol=1e-7)


def test_the_identity_kernel_in_groups_leaves_the_input():
    linear = reparam.identity(12, 3, reparam.float64)
    conv = reparam.to_conv2d(linear, like=Conv2d(12, 12, 1, groups=3))
    x = np.random.default_rng(0).standard_normal((2, 12, 5, 7)).astype(np.float32)
    np.testing.assert_array_equal(forward(conv, x), x)


def test_kernels_of_several_sizes_are_centred():
    big, small = ConvBN(4, 6, 5), ConvBN(4, 6, 1)
    x = np.random.default_rng(0).standard_normal((2, 4, 9, 7)).astype(np.float32)
    sum_of_both = forward(big, x) + forward(small, x)
    maps = [branch.linear_map(reparam.float64) for branch in (big, small)]
    fused = reparam.to_conv2d(reparam.add(*maps), like=big.conv)
    np.testing.assert_allclose(forward(fused, x), sum_of_both, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [{"dilation": 2, "padding": 2}, {"padding": 0}, {"padding_mode": "reflect"}],
    ids=str,
)
def test_a_convolution_that_is_none_of_a_branch_is_refused(settings):
    block = RepVGGBlock(4, 4)
    block.dense.conv = Conv2d(4, 4, 3, **{"padding": 1, **settings}, bias=False)
    with pytest.raises(ValueError, match=r"only padding \(1, 1\) of 'zeros' and no dilation can"):
        models.to_deploy(block)


def test_a_batch_norm_without_parameters_is_fused(rng):
    x = rng.standard_normal((8, 4, 6, 6)).astype(np.float32)
    block = ConvBN(4, 4, 3)
    block.bn = BatchNorm2d(4, affine=False)
    block(mge.Tensor(x))  # in training mode
    fused = reparam.to_conv2d(block.linear_map(reparam.float64), like=block.conv)
    np.testing.assert_allclose(forward(fused, x), forward(block, x), atol=1e-5)
    block.bn = BatchNorm2d(4, track_running_stats=False)
    block.train()
    by_batch = block(mge.Tensor(x)).numpy()
    np.testing.assert_allclose(forward(block, x), by_batch, atol=1e-5)
    with pytest.raises(ValueError, match="BatchNorm2d has track_running_stats=False, but only"):
        block.linear_map(reparam.float64)


@pytest.mark.parametrize("size", [(32, 32), (33, 65), (224, 96), (1, 1)])
def test_any_input_size_works_in_both_forms(tiny, size):
    model = tiny("se")
    x = np.random.default_rng(0).standard_normal((2, 3, *size)).astype(np.float32)
    outputs = [forward(network, x) for network in (model, models.to_deploy(model))]
    assert outputs[0].shape == (2, 10)
    np.testing.assert_allclose(*outputs, atol=1e-4)
    maps = model.features(mge.Tensor(x))
    pooled = F.mean(maps[-1], axis=(2, 3))
    np.testing.assert_allclose(model.linear(pooled).numpy(), outputs[0], atol=1e-5)


@pytest.mark.parametrize("kind", [*KINDS, "RepViTM0_6", "FastViTT8"])
def test_fused_weights_are_the_deploy_forms(tiny, images, kind):
    model = tiny(kind) if kind in KINDS else models.create(kind, 3)
    equivalence.randomize(model, images)
    before = {key: value.copy() for key, value in model.state_dict().items()}
    found = reparam.fused_weights(model)
    deployed = models.to_deploy(model)
    expected = {name: t.numpy() for name, t in deployed.named_parameters()}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        error = np.abs(found[name].numpy() - value).max()
        assert error <= 1e-6 * np.abs(value).max(), name
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[key])
    assert isinstance(models.to_deploy(model).linear.weight, mge.Parameter)


@pytest.mark.parametrize("block", [RepVGGBlock, QARepVGGBlock])
@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_of_fused_weights_are_those_of_the_branches(block, groups, rng):
    """The branches with their batch norms in evaluation mode, before the ReLU.

    One image: MegEngine's sums over axes that lie apart, as in these batch norms' gradients over
    several images, are now and then wrong on a CPU.
    """
    block = block(8, 8, groups=groups)
    x = rng.standard_normal((1, 8, 12, 12)).astype(np.float32)
    equivalence.randomize(block, x)
    block.eval()
    manager = mge.autodiff.GradManager().attach(block.parameters())
    x, dy = mge.Tensor(x), mge.Tensor(rng.standard_normal((1, 8, 12, 12)).astype(np.float32))
    gradients = []
    for fused in (False, True):
        with manager:
            if fused:
                weights = reparam.fused_weights(block)
                y = F.conv2d(
                    x, weights["reparam.weight"], weights["reparam.bias"], 1, 1, groups=groups
                )
            else:
                y = block.forward_branches(x)
            manager.backward(y, dy)
        gradients.append({name: p.grad.numpy().copy() for name, p in block.named_parameters()})
        for parameter in block.parameters():
            parameter.grad = None
    expected, found = gradients
    for name, value in expected.items():
        assert np.abs(found[name] - value).max() <= 1e-4 * np.abs(value).max(), name
