"""MMPretrain's layout: files that mmengine wrote, deploy forms, backbones, what differs there."""

import json
from functools import cache
from pathlib import Path

import models
from models import equivalence

import numpy as np
import pytest

from data.transforms import Preprocessing
from tests.support import change_architecture
from tests.weights.test_convert import GOLDEN, as_pth, numbered, state_of
from weights import catalog, checkpoint, entries, files, layouts, mmpretrain, recognition
from weights.state import form_of, shapes_of


@pytest.mark.parametrize("name", ["mmengine-epoch_1.pth", "mmengine-published.pth"])
def test_files_that_mmengine_wrote(name):
    """The averaged weights of a training checkpoint, which pickles foreign objects beside them."""
    expected = np.load(GOLDEN / "pth" / "mmengine-expected.npz")
    taken = next(
        entry
        for entry in entries.entries(files.read(GOLDEN / "pth" / name).tree)
        if entry.path == ("state_dict",)
    )
    kept = {key for key in expected.files if not key.endswith("num_batches_tracked")}
    assert taken.tensors.keys() == kept
    assert all(np.array_equal(taken.tensors[key], expected[key]) for key in kept)
    _, dropped, unknown = mmpretrain.REPVGG.to_ours(taken.tensors)
    assert not dropped and not unknown  # it is too small to be one of the networks here


@cache
def theirs(arch, form, classes=5):
    shapes = shapes_of(arch, classes, form)
    state = {key: numbered(shape, 1) for key, shape in shapes.items()}
    return layouts.export(state, arch, "mmpretrain")


@pytest.mark.parametrize(
    "arch, train, deploy",
    [
        ("RepVGGA0", 351, 46),
        ("RepVGGB0", 453, 58),
        ("RepVGGD2se", 985, 290),
        ("MobileOneS0", 1323, 88),
        ("MobileOneS1", 562, 88),
        ("MobileOneS4", 610, 136),
    ],
)
def test_there_are_as_many_tensors_as_in_theirs(arch, train, deploy):
    assert len(theirs(arch, "train")) == train
    assert len(theirs(arch, "deploy")) == deploy


def test_names_as_theirs():
    repvgg, mobileone = theirs("RepVGGD2se", "train"), theirs("MobileOneS4", "train")
    for key in (
        "backbone.stem.branch_3x3.norm.running_mean",
        "backbone.stage_1.1.branch_norm.num_batches_tracked",
        "backbone.stage_4.0.se_layer.conv1.conv.weight",
        "head.fc.bias",
    ):
        assert key in repvgg
    for key in (
        "backbone.stage0.branch_scale.conv.weight",
        "backbone.stage3.10.branch_conv_list.0.norm.running_var",
        "backbone.stage3.10.se.conv2.conv.bias",
    ):
        assert key in mobileone
    assert mobileone["backbone.stage3.10.se.conv1.conv.weight"].shape == (56, 896, 1, 1)


@pytest.mark.parametrize("arch", ["RepVGGA0", "MobileOneS0"])
def test_a_backbone_beside_other_modules_is_read(arch):
    backbone = {k: v for k, v in theirs(arch, "train").items() if k.startswith("backbone.")}
    others = {
        **{f"neck.fpn_convs.{i}.conv.weight": np.zeros((8, 8, 3, 3)) for i in range(12)},
        "bbox_head.cls.bias": np.zeros(80),
    }
    foreign = recognition.recognize({"state_dict": {**backbone, **others}}, "file")
    assert (foreign.source.name, foreign.arch, foreign.num_classes) == ("mmpretrain", arch, 0)
    assert foreign.entry == "state_dict.backbone" and set(others) <= set(foreign.dropped)
    strange = {**backbone, "backbone.stage5.x.weight": np.zeros(3)}
    with pytest.raises(
        recognition.ConversionError, match="that no rule knows: backbone.stage5.x.wei"
    ):
        recognition.recognize(strange, "file")


@pytest.mark.parametrize("arch", ["RepVGGA0", "MobileOneS0"])
@pytest.mark.parametrize("key", ["data_preprocessor.mean", "head.loss_module.class_weight"])
def test_an_unknown_tensor_does_not_cost_the_classifier(arch, key):
    tensors = theirs(arch, "deploy") | {key: np.zeros(5, np.float32)}
    with pytest.raises(recognition.ConversionError, match=f"no rule knows: {key};"):
        recognition.recognize({"meta": {}, "state_dict": tensors}, "file")


def test_the_small_entry_of_a_fused_network_is_found_beside_stale_weights():
    """What tools/convert_models/reparameterize_model.py of MMPretrain leaves in a file."""
    raw = {f"module.{key}": value for key, value in theirs("MobileOneS0", "train").items()}
    tree = {"state_dict": theirs("MobileOneS0", "deploy"), "ema_state_dict": raw}
    foreign = recognition.recognize(tree, "file")
    assert (foreign.entry, foreign.others) == ("state_dict", ["ema_state_dict"])
    assert form_of(foreign.state_dict) == "deploy"
    assert recognition.recognize(tree, "file", entry="state_dict").entry == "state_dict"


@pytest.mark.parametrize("arch", ["RepVGGA0", "MobileOneS0"])
@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize("prefix", ["backbone.", ""])
def test_a_backbone_has_no_classifier(arch, form, prefix):
    tensors = {
        prefix + key.removeprefix("backbone."): value
        for key, value in theirs(arch, form).items()
        if key.startswith("backbone.")
    }
    foreign = recognition.recognize({"meta": {"epoch": 1}, "state_dict": tensors}, "file")
    assert (foreign.source.name, foreign.arch, foreign.num_classes) == ("mmpretrain", arch, 0)
    assert form_of(foreign.state_dict) == form


def test_their_deploy_form_of_d2se_is_another_network(command, tmp_path, monkeypatch):
    small = {"depths": (1, 1, 1, 1), "width": (0.25, 0.25, 0.25, 0.25), "se": "before"}
    change_architecture(monkeypatch, "RepVGGD2se", models.repvgg.RepVGG, small)
    model = models.create("RepVGGD2se", 6)
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    equivalence.randomize(model, images)
    for network, said in ((model, False), (models.to_deploy(model), True)):
        tensors = layouts.export(state_of(network), "RepVGGD2se", "mmpretrain")
        as_pth(tmp_path / "d2se.pth", tensors)
        flags = ["--origin-dir", tmp_path / "d2se.pth", "--save-dir", tmp_path / "out.pkl"]
        flags += ["--model-arch", "RepVGGD2se"]
        status, out, err = command("convert_pretrained_weight", *flags)
        assert status == 0, err
        notes = [line for line in out.splitlines() if line.startswith("note: ")]
        assert [note.endswith("its logits differ") for note in notes] == [True] * said


def test_exports_say_what_they_lack_and_what_is_another_network_there(
    command, tmp_path, monkeypatch
):
    small = {"depths": (1, 1, 1, 1), "width": (0.25, 0.25, 0.25, 0.25), "se": "before"}
    change_architecture(monkeypatch, "RepVGGD2se", models.repvgg.RepVGG, small)
    model = models.create("RepVGGD2se", 6)
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    equivalence.randomize(model, images)
    for network, ranges, layout, said in (
        (model, None, "mmpretrain", []),
        (models.to_deploy(model), None, "repvgg", []),
        (models.to_deploy(model), None, "mmpretrain", ["leaves out the squeeze-and-excitation"]),
        (model, {"image": (-2.0, 2.0)}, "timm", ["activation ranges of the quantization-aware"]),
    ):
        contents = checkpoint.of_model(network, Preprocessing(size=32), activation_ranges=ranges)
        checkpoint.save(contents, tmp_path / "best.pkl")
        flags = ["--origin-dir", tmp_path / "best.pkl", "--save-dir", tmp_path / "out.safetensors"]
        flags += ["--export", layout]
        status, out, err = command("convert_pretrained_weight", *flags)
        assert status == 0, err
        notes = [line for line in out.splitlines() if line.startswith("note: ")]
        said = [*said, "images, also in this layout"]
        assert len(notes) == len(said) and all(a in b for a, b in zip(said, notes, strict=True))
        status, out, err = command("convert_pretrained_weight", *flags, "--json")
        assert [f"note: {note}" for note in json.loads(out)["export_notes"]] == notes


def test_the_advice_on_a_deploy_form_can_be_followed():
    assert "export the train form" in mmpretrain.note_of_export("RepVGGD2se", "deploy")
    assert "use the layout repvgg" in mmpretrain.note_of_export("RepVGGD2se-qa", "deploy")
    assert "repvgg" in layouts.names("RepVGGD2se-qa")
    assert mmpretrain.note_of_export("RepVGGB1-qa", "deploy") is None


def test_class_names_are_those_of_the_data_set_where_there_are_as_many():
    for meta, names in (
        ({"dataset_meta": {"classes": list("abcde")}}, list("abcde")),
        ({"dataset_meta": {"classes": tuple("abcde")}}, list("abcde")),
        ({"CLASSES": list("abcde")}, list("abcde")),
        ({"dataset_meta": {"classes": list("abcdef")}}, None),  # ImageNet's names in its place
        ({"dataset_meta": {"classes": [1, 2, 3, 4, 5]}}, None),
        ("text", None),
    ):
        said = read_with(meta)
        assert said.classes == names
        if names:
            assert said.origins["classes"] == "the file's dataset_meta"


def read_with(meta):
    path = Path("file.pth")
    contents = files.Contents({"meta": meta, "state_dict": theirs("RepVGGA0", "deploy")})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "read", lambda _: contents)
        return checkpoint.read(path)


def test_the_catalog_has_their_files():
    assert len(mmpretrain.PUBLISHED) == 17
    for name in mmpretrain.PUBLISHED:
        entry = next(e for e in catalog.PUBLISHED if (e.source, e.name) == ("mmpretrain", name))
        assert entry.where.rpartition("/")[2].startswith(name.partition("_")[0])
        assert entry.licence == ("MIT" if "D2se" in name else "Apache-2.0")
    assert catalog.published("mmpretrain", "MobileOneS4").top1 == 79.69
