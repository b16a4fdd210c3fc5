"""The total stride in checkpoints, in exports and in others' files, which do not always tell it."""

import hashlib
import json

import models
from models import equivalence

import megengine as mge
import numpy as np
import onnx
import pytest

import weights
from data.transforms import Preprocessing
from tests.golden import weights as golden_weights
from tests.weights.test_convert import as_pth, golden, numbered, state_of
from weights import catalog, checkpoint, chenyaofo, export, layouts, recognition
from weights.state import shapes_of

NOTE = "a total stride of 32 is assumed"


@pytest.fixture(scope="module")
def network():
    """RepVGGA0 as for CIFAR-10."""
    model = models.create("RepVGGA0", 10, stride=8)
    images = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
    equivalence.randomize(model, images)
    return model


def theirs(arch, classes, form, stride, layout="repvgg"):
    """A file's tensors, nearly all zero."""
    shapes = shapes_of(arch, classes, form, **({} if stride == 32 else {"stride": stride}))
    state = {key: numbered(shape, 1) for key, shape in shapes.items()}
    return layouts.export(state, arch, layout)


@pytest.mark.parametrize(
    "arch, layout", [("RepVGGA0", "repvgg"), ("RepVGGA1", "timm"), ("RepVGGA0", "mmpretrain")]
)
def test_a_train_form_with_the_identity_has_a_stride_of_8(arch, layout):
    tensors = theirs(arch, 5, "train", 8, layout)
    foreign = recognition.recognize(tensors, "file")
    assert (foreign.arch, foreign.options) == (arch, {"stride": 8})
    # a network whose stage 1 alone has a stride of 1 has the same tensors
    assert "first convolution, of which the tensors do not tell it" in foreign.note
    assert recognition.recognize(tensors, "file", stride=8).note is None
    assert len(tensors) == 356


@pytest.mark.parametrize("classes, said", [(1000, False), (200, True), (43, True)])
@pytest.mark.parametrize("form", ["train", "deploy"])
def test_other_numbers_of_classes_may_be_of_small_images_too(classes, said, form):
    foreign = recognition.recognize(theirs("RepVGGA2", classes, form, 32), "file")
    assert "stride" not in foreign.options
    assert (foreign.note is not None and foreign.note.startswith(NOTE)) == said


def test_images_of_imagenet_are_not_assumed_for_a_stride_of_8():
    foreign = recognition.recognize(theirs("RepVGGA0", 5, "train", 8), "file")
    value, origin = foreign.habit["size"]
    assert origin == "assumed: DingXiaoH/RepVGG's for RepVGGA0"  # the family's, of no published one
    assert "give --size, --mean and --std" in foreign.note


@pytest.mark.slow  # all architectures are tried
@pytest.mark.parametrize("arch, layout", [("RepVGGA0", "repvgg"), ("RepVGGA1", "timm")])
def test_a_train_form_with_the_identity_is_no_other_network(arch, layout):
    tensors = theirs(arch, 5, "train", 8, layout)
    with pytest.raises(recognition.ConversionError, match="does not fit RepVGGA2"):
        recognition.recognize(tensors, "file", "RepVGGA2")
    with pytest.raises(
        recognition.ConversionError, match=r"stride of 16 .*stage1\.0\.identity\S+ is"
    ):
        recognition.recognize(tensors, "file", arch, stride=16)


@pytest.mark.parametrize(
    "arch, form, classes, said",
    [
        ("RepVGGA2", "train", 10, "cifar10_repvgg_a2-09488915.pt"),
        ("RepVGGA2", "train", 100, "cifar100_repvgg_a2-8e71b1f8.pt"),
        ("RepVGGA0", "deploy", 10, "cifar10_repvgg_a0-ef08a50e.pt"),
        ("RepVGGA1", "deploy", 100, "cifar100_repvgg_a1-c06b21a7.pt"),
        ("RepVGGA2", "deploy", 10, "cifar10_repvgg_a2-09488915.pt"),
        ("RepVGGA0", "train", 10, None),  # without the identity of stride 8
        ("RepVGGA2", "train", 1000, None),
        ("RepVGGB0", "deploy", 10, None),
    ],
)
def test_what_may_be_for_cifar_is_said(arch, form, classes, said):
    tensors = theirs(arch, classes, form, 32)
    foreign = recognition.recognize(tensors, "file")
    assert foreign.options == {}
    assert (said is None) == (foreign.note is None)
    if said is not None:
        assert NOTE in foreign.note and "--stride 8" in foreign.note and said in foreign.note
    for stride in (8, 32):
        if said is not None or stride == 32:
            decided = recognition.recognize(tensors, "file", stride=stride)
            assert decided.options == ({} if stride == 32 else {"stride": 8})
            assert decided.note is None
    assert recognition.recognize(theirs(arch, classes, form, 32, "timm"), "file").note is None


@pytest.mark.parametrize("arch, form", [("RepVGGA2", "train"), ("RepVGGA0", "deploy")])
def test_a_backbone_may_be_for_cifar_too(arch, form):
    tensors = theirs(arch, 1000, form, 32)
    backbone = {key: value for key, value in tensors.items() if not key.startswith("linear.")}
    note = recognition.recognize(backbone, "file").note
    assert NOTE in note and "--stride 8" in note
    assert f"cifar10_{arch[:6].lower()}_{arch[6:].lower()}-" in note and " or cifar100_" in note
    decided = recognition.recognize(backbone, "file", stride=8)
    assert (decided.note, decided.options, decided.num_classes) == (None, {"stride": 8}, 0)


def test_the_report_and_the_name_say_it(command, network, tmp_path):
    deployed = models.to_deploy(network)
    origin = tmp_path / "a0.pth"
    as_pth(origin, layouts.export(state_of(deployed), "RepVGGA0", "repvgg"))
    flags = ["convert_pretrained_weight", "--origin-dir", origin, "--save-dir", tmp_path / "out"]
    status, out, err = command(*flags)
    (line,) = [line for line in out.splitlines() if NOTE in line]
    assert status == 0 and err == "" and line.startswith("note: ") and "--stride 8" in line
    assert (tmp_path / "out" / "RepVGGA0-deploy.pkl").is_file()
    status, out, err = command(*flags, "--stride", 8)
    assert status == 0 and NOTE not in out and "RepVGGA0, stride=8, deploy form" in out
    saved = tmp_path / "out" / "RepVGGA0-stride8-deploy.pkl"
    assert checkpoint.read(saved).options == {"stride": 8}
    weights.load(origin)  # whoever reads the file without converting it is told too
    model = weights.load(saved)
    assert model.strides == (1, 2, 4, 8)


def test_the_note_goes_to_stderr_where_a_file_is_read_directly(capfd, network, tmp_path):
    origin = tmp_path / "a0.pth"
    as_pth(origin, layouts.export(state_of(models.to_deploy(network)), "RepVGGA0", "repvgg"))
    weights.load(origin)
    err = capfd.readouterr().err
    assert err.startswith(f"note: {origin}: {NOTE}") and len(err.splitlines()) == 1


def test_the_golden_logits_of_a_network_for_cifar(command, tmp_path):
    tensors, archive = golden("chenyaofo-cifar10_repvgg_a0")
    as_pth(tmp_path / "cifar10_repvgg_a0.pt", tensors)
    flags = ["--origin-dir", tmp_path / "cifar10_repvgg_a0.pt", "--save-dir", tmp_path / "out"]
    status, out, err = command("convert_pretrained_weight", *flags)
    assert status == 0 and err == ""
    for line in (
        "source:         chenyaofo (chenyaofo/pytorch-cifar-models)",
        "architecture:   RepVGGA0, stride=8, train form, 10 classes",
        "mean:           125.307 122.961 113.858 (assumed: chenyaofo/pytorch-cifar-models's for "
        "cifar10_repvgg_a0)",
        "class names:    10, from 'airplane' on (assumed: chenyaofo/pytorch-cifar-models's for ",
    ):
        assert line in out
    found = checkpoint.read(tmp_path / "out" / "RepVGGA0-stride8.pkl")
    assert found.classes == [*chenyaofo.CLASSES[10]]
    assert (found.preprocessing.size, found.preprocessing.crop_ratio) == (32, 1.0)
    model, expected = weights.load(found), archive["logits"]
    for network in (model, models.to_deploy(model)):
        network.eval()
        logits = network(mge.Tensor(golden_weights.image(32))).numpy()
        assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()
    exported = layouts.export(found.state_dict, "RepVGGA0", "repvgg")
    assert all(np.array_equal(exported[key], tensors[key]) for key in tensors)


def test_what_is_exported_here_has_no_class_names_of_cifar(network, tmp_path):
    own = checkpoint.of_model(network, Preprocessing(size=32, crop_ratio=1.0))
    export.save(own, "repvgg", tmp_path / "a.safetensors")
    again = checkpoint.read(tmp_path / "a.safetensors")
    assert (again.classes, again.preprocessing) == (None, own.preprocessing)


@pytest.mark.parametrize("arch, classes", chenyaofo.PUBLISHED)
def test_the_catalog_has_the_networks_for_cifar(arch, classes):
    entry = catalog.published("chenyaofo", arch, classes)
    assert entry.where.endswith(chenyaofo.PUBLISHED[arch, classes])
    assert len(set(entry.classes)) == classes and entry.classes == tuple(sorted(entry.classes))
    assert (entry.stride, entry.size, entry.data) == (8, 32, f"CIFAR-{classes}")
    assert entry.licence == "BSD-3-Clause"
    assert catalog.published("chenyaofo", arch, 1000) is None


@pytest.mark.parametrize(
    "arch, classes, form, strides",
    [
        ("RepVGGA0", 7, "deploy", "8 and 16"),
        ("RepVGGA0", 7, "train", "16"),  # 8 has one more identity
        ("RepGhost050", 7, "deploy", "16"),
        ("RepVGGA0", 1000, "deploy", None),
    ],
)
def test_the_stride_of_a_state_dict_in_own_names_is_said_to_be_assumed(
    arch, classes, form, strides
):
    foreign = recognition.recognize(theirs(arch, classes, form, 32, "own"), "file")
    assert foreign.options == {}
    if strides is None:
        assert foreign.note is None
    else:
        assert f"{NOTE}, as the tensors do not tell it from {strides}; conv" in foreign.note
    assert (
        recognition.recognize(theirs(arch, classes, form, 32, "own"), "f", stride=16).note is None
    )


def test_a_published_file_is_told_by_its_digest(network, tmp_path, monkeypatch):
    tensors = layouts.export(state_of(models.to_deploy(network)), "RepVGGA0", "repvgg")
    as_pth(tmp_path / "a0.pth", tensors)
    digest = hashlib.sha256((tmp_path / "a0.pth").read_bytes()).hexdigest()[:8]
    name = f"cifar10_repvgg_a0-{digest}.pt"
    (tmp_path / "a0.pth").rename(tmp_path / name)
    assert checkpoint.read(tmp_path / name).options == {}  # not one of the published
    monkeypatch.setitem(chenyaofo.PUBLISHED, ("RepVGGA0", 10), name)
    found = checkpoint.read(tmp_path / name)
    assert found.options == {"stride": 8} and found.note is None
    assert found.classes == [*chenyaofo.CLASSES[10]]
    (tmp_path / name).rename(tmp_path / "renamed.pt")
    assert checkpoint.read(tmp_path / "renamed.pt").options == {"stride": 8}
    (tmp_path / "renamed.pt").rename(tmp_path / name)
    with open(tmp_path / name, "ab") as file:
        file.write(b"\0")  # no longer what was published
    assert checkpoint.read(tmp_path / name).note is not None


def test_the_layouts_hold_it_and_exports_record_it(command, network, tmp_path):
    path = tmp_path / "best.pkl"
    checkpoint.save(checkpoint.of_model(network, Preprocessing(size=32, crop_ratio=1.0)), path)
    export = ["convert_pretrained_weight", "--origin-dir", path, "--save-dir", tmp_path]
    assert command(*export, "--export", "timm")[0] == 0
    again = checkpoint.read(tmp_path / "RepVGGA0-stride8.safetensors")
    assert again.options == {"stride": 8}
    for key, value in network.state_dict().items():
        assert np.array_equal(again.state_dict[key].ravel(), value.ravel())
    status, _, err = command(*export, "--stride", 32)
    assert status == 2 and "has a total stride of 8, but --stride 32 was asked for" in err
    status, out, _ = command("export", "--model", path, "--out", tmp_path / "", "--json")
    assert status == 0 and json.loads(out)["options"] == {"stride": 8}
    noted = {e.key: e.value for e in onnx.load(tmp_path / "RepVGGA0-stride8.onnx").metadata_props}
    assert json.loads(noted["options"]) == {"stride": 8}


@pytest.mark.parametrize("layout, suffix", [("repvgg", ".pth.tar"), ("own", ".safetensors")])
def test_a_stride_of_32_is_recorded_too_and_need_not_be_assumed(layout, suffix, tmp_path):
    model = models.to_deploy(models.create("RepVGGA0", 10))
    path = tmp_path / f"exported{suffix}"
    export.save(checkpoint.of_model(model, Preprocessing(size=32)), layout, path)
    again = checkpoint.read(path)
    assert again.note is None and again.options == {}


@pytest.mark.slow
def test_training_with_it(command, image_folder, tmp_path):
    data = image_folder(train=8, val=2)
    flags = ["--data", data, "--save", tmp_path, "--size", 16, "--batch-size", 8, "--epochs", 1]
    flags += ["--arch", "RepGhost050", "--workers", 0, "--tag", "a"]
    status, out, err = command("train", *flags, "--stride", 8)
    assert status == 0, err
    assert "RepGhost050-stride8 on" in out
    saved = tmp_path / "RepGhost050-stride8" / "a" / "best.pkl"
    assert checkpoint.read(saved).options == {"stride": 8}
    fresh, _ = weights.load_for_fine_tuning(checkpoint.read(saved), "RepGhost050", 5)
    assert fresh.options == {"stride": 8}
    assert command("train", *flags[:-1], "c", "--pretrained", saved)[0] == 0
    assert (tmp_path / "RepGhost050-stride8" / "c" / "best.pkl").is_file()
    assert not (tmp_path / "RepGhost050").exists()
    status, _, err = command("train", *flags[:-1], "b", "--pretrained", saved, "--stride", 16)
    assert status == 2 and "has a total stride of 8, but --stride 16 was asked for" in err
    status, _, err = command("train", "--stride", 4)
    assert status == 2 and "invalid choice: 4" in err
