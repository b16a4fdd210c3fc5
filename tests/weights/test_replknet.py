"""RepLKNet's two layouts, in train form and in what each source calls its deploy form."""

import pickle
from dataclasses import replace

import models
from models import equivalence
from models.replknet import RepLKNet

import megengine as mge
import numpy as np
import pytest

import weights
from data.transforms import BASECLS, TORCHVISION, Preprocessing
from tests.support import change_architecture
from tests.weights.test_convert import state_of
from weights import checkpoint, export, layouts, recognition
from weights.channels import with_input_channels
from weights.state import form_of

CLASSES = 6
SMALL = {"channels": (4, 8, 12, 16), "depths": (2, 2, 3, 2), "kernel_sizes": (9, 9, 7, 7)}


@pytest.fixture
def network(monkeypatch, rng):
    """A small RepLKNet31B, with one of its stages as long as its row has room for."""
    change_architecture(monkeypatch, "RepLKNet31B", RepLKNet, SMALL)
    model = models.create("RepLKNet31B", CLASSES)
    equivalence.randomize(model, rng.standard_normal((4, 3, 64, 64)).astype(np.float32))
    return model


def batch_norm(tensors, name):
    names = ("weight", "bias", "running_mean", "running_var")
    weight, bias, mean, var = (tensors.pop(f"{name}.{n}").astype(np.float64) for n in names)
    tensors.pop(f"{name}.num_batches_tracked", None)
    gain = weight / np.sqrt(var + 1e-5)
    return gain, bias - mean * gain


def logits(state, images):
    model = weights.load(checkpoint.of_foreign(recognition.recognize(state, "file"), "file"))
    model.eval()
    return model(mge.Tensor(images)).numpy()


def assert_same(found, expected):
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_pytorchs_names(network):
    theirs = layouts.export(state_of(network), "RepLKNet31B", "replknet")
    for key, shape in {
        "stem.3.bn.running_var": (4,),
        "stages.0.blocks.0.prelkb_bn.weight": (4,),
        "stages.0.blocks.2.large_kernel.lkb_origin.conv.weight": (4, 1, 9, 9),
        "stages.2.blocks.4.large_kernel.small_conv.bn.bias": (12,),
        "stages.3.blocks.3.pw1.conv.weight": (64, 16, 1, 1),
        "stages.3.blocks.3.preffn_bn.num_batches_tracked": (),
        "transitions.2.1.conv.weight": (16, 1, 3, 3),
        "norm.running_mean": (16,),
        "head.weight": (CLASSES, 16),
    }.items():
        assert theirs[key].shape == shape, key
    foreign = recognition.recognize(theirs, "file")
    assert (foreign.source.name, foreign.arch) == ("replknet", "RepLKNet31B")
    said = checkpoint.of_foreign(foreign, "file").preprocessing
    assert said == replace(TORCHVISION, interpolation="bicubic")
    for key, value in state_of(network).items():
        np.testing.assert_array_equal(foreign.state_dict[key], value)


def test_a_classifier_of_another_name_is_not_dropped(network):
    """head.fc was renamed to linear.fc, and then left out."""
    theirs = layouts.export(state_of(network), "RepLKNet31B", "replknet")
    other = {key.replace("head.", "head.fc."): value for key, value in theirs.items()}
    with pytest.raises(recognition.ConversionError, match=r"no rule knows: head\.fc"):
        recognition.recognize(other, "file")


@pytest.mark.parametrize("form", ["train", "deploy"])
def test_mmpretrains_names(network, images, form):
    """As in a training checkpoint of OpenMMLab, and of the backbone alone."""
    network.eval()
    expected = network(mge.Tensor(images)).numpy()
    state = state_of(network if form == "train" else models.to_deploy(network))
    theirs = layouts.export(state, "RepLKNet31B", "mmpretrain")
    large = "lkb_origin.conv" if form == "train" else "lkb_reparam"
    for key, shape in {
        "backbone.stem.3.bn.running_var": (4,),
        f"backbone.stages.0.blocks.2.large_kernel.{large}.weight": (4, 1, 9, 9),
        "backbone.stages.3.blocks.3.pw1.conv.weight": (64, 16, 1, 1),
        "backbone.transitions.2.1.conv.weight": (16, 1, 3, 3),
        "backbone.stages.3.norm.running_mean": (16,),
        "head.fc.weight": (CLASSES, 16),
    }.items():
        assert theirs[key].shape == shape, key
    for tree in (theirs, {"meta": {}, "state_dict": theirs, "message_hub": {}}):
        foreign = recognition.recognize(tree, "file")
        assert (foreign.source.name, foreign.arch) == ("mmpretrain", "RepLKNet31B")
        assert form_of(foreign.state_dict) == form and foreign.num_classes == CLASSES
        said = checkpoint.of_foreign(foreign, "file").preprocessing
        assert said == replace(TORCHVISION, interpolation="bicubic")
        assert_same(logits(tree, images), expected)
    backbone = {key: value for key, value in theirs.items() if key.startswith("backbone.")}
    assert recognition.recognize(backbone, "file").num_classes == 0


def test_pytorchs_deeply_fused_form_is_folded_the_rest_of_the_way(network, images):
    """What deep_fuse_BN leaves where batch norms are plain ones: those before convolutions."""
    network.eval()
    expected = network(mge.Tensor(images)).numpy()
    theirs = dict(layouts.export(state_of(network), "RepLKNet31B", "replknet"))
    for key in [k for k in theirs if k.endswith(".conv.weight") and "large_kernel" not in k]:
        layer = key.removesuffix(".conv.weight")
        gain, shift = batch_norm(theirs, f"{layer}.bn")
        theirs[key] = (theirs[key] * gain[:, None, None, None]).astype(np.float32)
        theirs[f"{layer}.conv.bias"] = shift.astype(np.float32)
    merge_large_kernels(theirs)
    foreign = recognition.recognize(theirs, "file")
    assert form_of(foreign.state_dict) == "deploy"
    assert_same(logits(theirs, images), expected)


def merge_large_kernels(theirs):
    """Do to tensors what structural_reparam does to the network."""
    for key in [key for key in theirs if key.endswith("lkb_origin.conv.weight")]:
        prefix = key.removesuffix(".lkb_origin.conv.weight")
        kernel, small = theirs.pop(key), theirs.pop(f"{prefix}.small_conv.conv.weight")
        gain, shift = batch_norm(theirs, f"{prefix}.lkb_origin.bn")
        gain5, shift5 = batch_norm(theirs, f"{prefix}.small_conv.bn")
        kernel = kernel * gain[:, None, None, None]
        pad = (kernel.shape[2] - 5) // 2
        kernel[:, :, pad : pad + 5, pad : pad + 5] += small * gain5[:, None, None, None]
        theirs[f"{prefix}.lkb_reparam.weight"] = kernel.astype(np.float32)
        theirs[f"{prefix}.lkb_reparam.bias"] = (shift + shift5).astype(np.float32)


def test_pytorchs_merged_form_is_folded_the_rest_of_the_way(network, images):
    theirs = dict(layouts.export(state_of(network), "RepLKNet31B", "replknet"))
    merge_large_kernels(theirs)
    foreign = recognition.recognize(theirs, "file")
    assert form_of(foreign.state_dict) == "deploy"
    exported = layouts.export(foreign.state_dict, "RepLKNet31B", "replknet")
    assert {k: v.shape for k, v in exported.items()} == {k: v.shape for k, v in theirs.items()}
    network.eval()
    expected = network(mge.Tensor(images)).numpy()
    assert_same(logits(theirs, images), expected)
    assert_same(logits(exported, images), expected)
    del theirs["stages.2.blocks.4.prelkb_bn.weight"]
    with pytest.raises(recognition.ConversionError, match=r"stage3\.3\.enter\.reparam\.weight is "):
        recognition.recognize(theirs, "file")


def test_megengines_deploy_form_keeps_the_last_norm(network, images):
    """Its names, and the norm folded into the classifier."""
    train = layouts.export(state_of(network), "RepLKNet31B", "megengine")
    assert train["blocks.3.dw.dw_large.conv.weight"].shape == (8, 1, 1, 9, 9)
    theirs = layouts.export(state_of(models.to_deploy(network)), "RepLKNet31B", "megengine")
    for key in ("stem.6.weight", "blocks.0.dw.bias", "blocks.26.mlp.fc2.weight", "norm.weight"):
        assert key in theirs, key
    norm = {key: train[key] for key in train if key.startswith(("norm.", "head."))}
    foreign = recognition.recognize(theirs | norm, "file")
    assert foreign.source.name == "megengine"
    said = checkpoint.of_foreign(foreign, "file").preprocessing
    assert said == replace(BASECLS, interpolation="bicubic")
    assert form_of(foreign.state_dict) == "deploy"
    network.eval()
    assert_same(logits(theirs | norm, images), network(mge.Tensor(images)).numpy())
    broken = {key: value for key, value in (theirs | norm).items() if key != "norm.running_mean"}
    with pytest.raises(recognition.ConversionError, match="norm.weight is unknown"):
        recognition.recognize(broken, "file")


@pytest.mark.parametrize("layout", ["megengine", "replknet"])
def test_a_backbone_may_have_the_norm_behind_it(network, layout):
    """It is no part of the features, and the deploy form has none."""
    train = layouts.export(state_of(network), "RepLKNet31B", layout)
    theirs = layouts.export(state_of(models.to_deploy(network)), "RepLKNet31B", layout)
    theirs |= {key: value for key, value in train.items() if key.startswith("norm.")}
    theirs = {key: value for key, value in theirs.items() if not key.startswith("head.")}
    foreign = recognition.recognize(theirs, "file")
    assert foreign.num_classes == 0 and "norm.weight" not in foreign.state_dict


def test_images_of_384_pixels_are_not_cropped_and_the_report_says_what_the_source_does(
    network, command, tmp_path
):
    theirs = layouts.export(state_of(network), "RepLKNet31B", "replknet")
    path = tmp_path / "a.pth"
    for args, stated, size, crop_ratio in (
        ({}, {}, 224, 0.875),
        ({"input_size": 384}, {}, 384, 1.0),
        ({}, {"size": (384, "--size")}, 384, 1.0),
        ({"input_size": 384}, {"size": (224, "--size")}, 224, 0.875),
        ({"input_size": 384}, {"crop_ratio": (0.9, "--crop-ratio")}, 384, 0.9),
    ):
        path.write_bytes(pickle.dumps({"model": theirs, "args": args}))
        found = checkpoint.read(path, stated=stated)
        assert (found.preprocessing.size, found.preprocessing.crop_ratio) == (size, crop_ratio)
        said = [*args, *stated]
        assert (found.note is not None) == (crop_ratio == 1.0 or not said)
        assert said or "images of 224 px are assumed" in found.note
    path.write_bytes(pickle.dumps(theirs))
    status, out, err = command(
        "convert_pretrained_weight", "--origin-dir", path, "--save-dir", tmp_path / "a.pkl",
        "--size", 384,
    )  # fmt: skip
    assert status == 0, err
    assert (
        "size:           384 (--size)" in out and "crop ratio:     1.0 (assumed: images of" in out
    )
    assert "note: DingXiaoH/RepLKNet-pytorch's own evaluation warps whole images to 384x384" in out
    assert checkpoint.read(tmp_path / "a.pkl").preprocessing.size == 384
    state = {"model": layouts.export(state_of(network), "RepLKNet31B", "megengine")}
    path.write_bytes(pickle.dumps({**state, "args": {"input_size": 384}}))
    assert checkpoint.read(path).preprocessing.crop_ratio == 0.875  # which is not known to warp


@pytest.mark.parametrize("form", ["train", "deploy"])
def test_own_names_and_grey_images(network, form):
    state = state_of(network if form == "train" else models.to_deploy(network))
    foreign = recognition.recognize(state, "file")
    assert (foreign.source.name, foreign.arch, foreign.options) == ("own", "RepLKNet31B", {})
    converted, _ = with_input_channels(checkpoint.of_foreign(foreign, "file"), 1)
    for layout in ("own", "megengine", "replknet"):
        theirs = layouts.export(converted.state_dict, "RepLKNet31B", layout)
        grey = recognition.recognize(theirs, "file")
        assert (grey.source.name, grey.options) == (layout, {"in_chans": 1})


@pytest.mark.parametrize("layout", ["own", "megengine", "replknet"])
def test_files_keep_the_preprocessing(network, layout, tmp_path):
    said = Preprocessing("BGR", size=96, crop_ratio=0.8)
    before = checkpoint.of_model(network, said, list("abcdef"))
    path = tmp_path / ("a.safetensors" if layout == "replknet" else "a.pkl")
    export.save(before, layout, path)
    after = checkpoint.read(path)
    assert (after.preprocessing, after.classes) == (said, before.classes)
    assert set(after.origins.values()) == {"the file"}
