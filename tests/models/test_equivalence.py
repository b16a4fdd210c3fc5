"""verify.py: passes on every network, and fails when the fusion is broken."""

import json
from dataclasses import replace

import models
from models import equivalence, init, reparam

import megengine as mge
import megengine.module as M
import numpy as np
import pytest

import verify
from data.transforms import BASECLS
from tests.support import ONE_OF_EACH, slow_but
from weights import checkpoint


@pytest.mark.parametrize(
    "arch",
    # one of the "-qa" variants, which differ from their twins in the block alone
    slow_but(
        ["RepVGGA0", "RepVGGB1g4-qa", "MobileOneS0", "RepViTM0_6", "RepGhost050", "FastViTT8"],
        [*(name for name in models.list_models() if not name.endswith("-qa")), "RepVGGB1g4-qa"],
    ),
)
def test_every_network_is_equal_after_fusion(arch):
    with init.uninitialized():
        model = models.create(arch)
    size = model.check_size
    images = np.random.default_rng(0).standard_normal((2, 3, size, size)).astype(np.float32)
    equivalence.randomize(model, images)
    assert equivalence.compare(model, images, consume=True).holds


def without_eps(fuse):
    """Return a fusion of a batch norm that forgets its epsilon."""

    def broken(*arguments):
        (bn,) = (argument for argument in arguments if isinstance(argument, M.Module))
        bn.eps, eps = 0.0, bn.eps
        try:
            return fuse(*arguments)
        finally:
            bn.eps = eps

    return broken


def without_mean(linear, bn, read):
    right = batch_norm(linear, bn, read)
    return right._replace(bias=right.bias * 0 + bn.bias.numpy().ravel())


def without_identity(channels, groups, read):
    right = identity(channels, groups, read)
    return right._replace(kernel=right.kernel * 0)


batch_norm, identity = reparam.batch_norm, reparam.identity


@pytest.mark.parametrize(
    "name, broken, kind",
    [
        ("batch_norm", without_eps(batch_norm), "RepVGG block: identity"),
        ("batch_norm_before", without_eps(reparam.batch_norm_before), "RepLKNet block, 13x13"),
        pytest.param("batch_norm", without_mean, "RepVGG block: identity", marks=pytest.mark.slow),
        pytest.param(
            "identity", without_identity, "RepVGG block: identity", marks=pytest.mark.slow
        ),
    ],
)
def test_verify_sees_a_broken_fusion(monkeypatch, command, small_replknet, name, broken, kind):
    monkeypatch.setattr(models, "BLOCKS", {kind: models.BLOCKS[kind]})
    arch = "RepLKNet31B" if "RepLKNet" in kind else "RepVGGA0"
    monkeypatch.setattr(reparam, name, broken)
    status, out, _ = command("verify", "--arch", arch, "--size", "32")
    assert status == 1
    rows, failures = out.split("differ by more than")
    assert kind in failures  # the failing rows come last
    assert arch in failures or "RepLKNet" in kind  # whose maps have a variance of about 1


@pytest.mark.parametrize(
    "kind, tap",
    [
        *(("RepLKNet large kernel, 27x27", tap) for tap in [(0, 0), (7, -1), (5, 3)]),
        *(("FastViT depthwise layer", tap) for tap in [(0, 0), (15, -1), (8, 2)]),
    ],
)
def test_verify_sees_one_tap_of_one_kernel(monkeypatch, kind, tap):
    """In whichever channel: neither a ReLU nor a shortcut hides it in a layer alone."""
    right, (channel, row) = reparam.to_conv2d, tap
    monkeypatch.setattr(models, "BLOCKS", {kind: models.BLOCKS[kind]})

    def wrong(linear, like):
        linear.kernel[channel, 0, row, row] = 0
        return right(linear, like)

    _, expected = next(verify.comparisons(verify.parse_args([])))
    monkeypatch.setattr(reparam, "to_conv2d", wrong)
    name, found = next(verify.comparisons(verify.parse_args([])))
    assert name == kind and expected.holds and found.relative_error > 1e-3


@pytest.mark.parametrize("arch", [*ONE_OF_EACH, "RepLKNet31B"])
def test_no_tap_meets_padding_alone_at_the_size_of_the_check(arch, small_replknet):
    """Every size of kernel in every map: some output reads a pixel by its first and last tap."""
    model = models.create(arch, deploy=True)
    seen = []

    def note(module, inputs, output):
        side, padding, kernel = inputs[0].shape[2], module.padding[0], module.kernel_size[0]
        first = (output.shape[2] - 1) * module.stride[0] >= padding
        last = kernel - 1 - padding < side
        seen.append((side, kernel, first and last))

    for module in model.modules():
        if isinstance(module, M.Conv2d):
            module.register_forward_hook(note)
    model(mge.Tensor(np.zeros((1, 3, model.check_size, model.check_size), np.float32)))
    assert max(kernel for _, kernel, _ in seen) >= 3
    assert all(meets for _, _, meets in seen), seen


@pytest.mark.parametrize("consume", [False, True])
def test_modules_keep_their_modes(tiny, images, consume):
    """Also those that are not the network's, such as frozen batch norms'."""
    model = tiny()
    model.stage2.eval()
    model.stage1[0].dense.bn.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    equivalence.randomize(model, images)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert equivalence.compare(model, images, consume).holds
    for name, module in model.named_modules():
        assert module.training == (name != "stage1.0.dense.bn" and "stage2" not in name), name


def test_verify_prints_a_table_and_json(command):
    status, out, _ = command("verify", "--arch", "repvgg_a0", "--size", "32")
    assert status == 0
    assert "9,108,968 ->   8,309,384" in out
    assert out.splitlines()[-1] == f"all {len(models.BLOCKS) + 1} equal: relative error <= 1e-05"
    status, out, _ = command("verify", "--arch", "RepVGGA0", "--size", "32", "--json")
    rows = json.loads(out)
    assert len(rows) == len(models.BLOCKS) + 1 and all(row["holds"] for row in rows)


def test_verify_takes_a_checkpoint(command, tmp_path, images):
    model = models.create("RepVGGA0", num_classes=10)
    equivalence.randomize(model, images)
    path = tmp_path / "best.pkl"
    checkpoint.save(checkpoint.of_model(model, BASECLS), path)
    status, out, _ = command("verify", "--model", path)
    assert status == 0 and "all 1 equal" in out
    deployed = checkpoint.of_model(models.to_deploy(model), BASECLS)
    checkpoint.save(deployed, path)
    status, _, err = command("verify", "--model", path)
    assert status == 2 and "is in deploy form, but the train form was expected" in err


@pytest.mark.slow
def test_a_checkpoint_is_verified_on_whole_kernels(monkeypatch, command, tmp_path, images):
    model = models.create("RepGhost050", 10)
    equivalence.randomize(model, images)
    path = tmp_path / "a.pkl"
    checkpoint.save(checkpoint.of_model(model, replace(BASECLS, size=40)), path)
    large = tmp_path / "large.pkl"
    checkpoint.save(checkpoint.of_model(model, replace(BASECLS, size=72)), large)
    seen, compare = [], equivalence.compare

    def noted(network, images):
        seen.append(images.shape[2:])
        return compare(network, images)

    monkeypatch.setattr(equivalence, "compare", noted)
    assert command("verify", "--model", path)[::2] == (0, "")
    assert command("verify", "--model", large)[::2] == (0, "")
    flags = ["--size", "48", "--arch", "repghost_050"]
    status, _, err = command("verify", "--model", path, *flags)
    assert status == 0 and "at --size 48, some taps of the kernels of RepGhost050 meet" in err
    assert seen == [(64, 64), (72, 72), (48, 48)]
    for wrong, said in (("RepGhost", "unknown architecture"), ("RepGhost*", "give one --arch")):
        status, out, err = command("verify", "--model", path, "--arch", wrong)
        assert (status, out) == (2, "") and said in err and err.count("\n") == 1


def test_a_network_that_gives_nan_is_not_equal(tiny, images):
    model = tiny()
    model.linear.bias[...] = np.float32("nan")
    assert not equivalence.compare(model, images).holds


def test_verify_expands_a_pattern_of_qa_variants():
    args = verify.parse_args(["--arch", "repvgg_a0_qa", "RepVGGA*-qa"])
    assert args.arch == ["RepVGGA0-qa", "RepVGGA1-qa", "RepVGGA2-qa"]
    assert set(models.list_models("*-qa")) < set(verify.parse_args(["--arch", "all"]).arch)


def test_verify_refuses_an_unknown_name(command):
    status, _, err = command("verify", "--arch", "RepVGGZ")
    assert status == 2 and "unknown architecture 'RepVGGZ'; the nearest names are" in err


def test_a_classifier_of_zeros_is_equal(tiny, images):
    model = tiny()
    equivalence.randomize(model, images)
    for parameter in model.linear.parameters():
        parameter._reset(mge.Tensor(np.zeros(parameter.shape, np.float32)))
    found = equivalence.compare(model, images)
    assert found.holds and found.relative_error == 0


def test_one_class_agrees_by_its_sign():
    logits = np.array([[1.0], [-2.0], [3.0], [-4.0]])
    assert equivalence.agreement(logits, logits) == 1
    assert equivalence.agreement(logits, -logits) == 0
    assert equivalence.agreement(logits, logits - 2) == 0.75
