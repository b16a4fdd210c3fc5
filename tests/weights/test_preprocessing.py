"""What images go through before a network: flags, files, habits, and where each value is from."""

import json
import pickle
from argparse import Namespace
from dataclasses import replace
from fnmatch import fnmatchcase

import models

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from data.transforms import BASECLS, TORCHVISION, Preprocessing
from tests.support import change_architecture
from tests.weights.torch_writer import whole, write_zip
from utils import UserError
from weights import (
    catalog,
    checkpoint,
    export,
    layouts,
    recognition,
    recorded_preprocessing,
    stated_preprocessing,
)
from weights.state import shapes_of

HABIT = stated_preprocessing.of_habit(TORCHVISION, "assumed: theirs")
ODD = Preprocessing(
    "BGR", (101.7, 102.3333333333, 103.1), (51.5, 52.25, 1 / 3), 96, "bicubic", 0.93, "pillow"
)


def resolve(*statements, classes=10):
    return stated_preprocessing.resolve(HABIT, *statements, classes=classes, path="a.pth")


def flags(**given):
    return stated_preprocessing.of_flags(Namespace(**given))


def state_of(arch, form="train", classes=10):
    """A network's tensors, each of its own numbers."""
    rng = np.random.default_rng(0)
    return {
        key: rng.random(shape, np.float32) + 0.5
        for key, shape in shapes_of(arch, classes, form).items()
    }


def checkpoint_of(arch, said, form="train", names=None):
    return checkpoint.Checkpoint(arch, form, 10, names, said, state_of(arch, form))


# ---------------------------------------------------------------- statements


def test_the_strongest_statement_counts_and_its_origin_is_kept():
    weaker = {"crop_ratio": (0.9, "config.json"), "size": (160, "config.json")}
    found, classes, origins = resolve(weaker, flags(crop_ratio=0.95))
    assert (found.crop_ratio, found.size, found.interpolation) == (0.95, 160, "bilinear")
    assert classes is None
    assert origins["crop_ratio"] == "--crop-ratio"
    assert origins["size"] == "config.json" and origins["mean"] == "assumed: theirs"


def test_another_colour_order_takes_mean_and_deviation_with_it():
    found, _, _ = resolve(flags(color="bgr"))
    assert (found.color, found.mean, found.std) == ("BGR", BASECLS.mean, BASECLS.std)
    own = (1.5, 2.0, 3.0)
    found, _, _ = resolve(flags(color="bgr", mean=own))
    assert (found.mean, found.std) == (own, BASECLS.std)
    found, _, _ = resolve({"mean": (own, "config.json")}, flags(color="bgr"))
    assert found.mean == own[::-1]


@pytest.mark.parametrize(
    "given, mean, std",
    [
        ({"mean": [0.485, 0.456, 0.406]}, TORCHVISION.mean, TORCHVISION.std),
        ({"mean": [103.5, 0.5, 0]}, (103.5, 0.5, 0), TORCHVISION.std),
        ({"mean": [0, 0, 0], "std": [1, 1, 1]}, (0, 0, 0), (255, 255, 255)),
        ({"mean": [0, 0, 0], "std": [58, 57, 56]}, (0, 0, 0), (58, 57, 56)),
        ({"mean": [127, 127, 127], "std": [1, 1, 1]}, (127, 127, 127), (1, 1, 1)),
    ],
)
def test_flags_are_for_pixels_from_0_to_1_or_to_255(given, mean, std):
    found, _, _ = resolve(flags(**given))
    assert (found.mean, found.std) == (mean, std)


def test_flags_for_pixels_of_both_kinds_are_refused():
    with pytest.raises(UserError, match="--mean 0.5 .* give both for the same pixels"):
        flags(mean=[0.5, 0.5, 0.5], std=[58, 57, 56])
    with pytest.raises(UserError, match=r"--mean 124 .* 0 to 255, and --std 0.2 .* 0 to 1;"):
        flags(mean=[124, 116, 104], std=[0.2, 0.2, 0.2])
    assert flags(mean=[124, 116, 104], std=[1, 1, 1])["std"] == ((1, 1, 1), "--std")  # Caffe's


@pytest.mark.parametrize(
    "said, sentence",
    [
        ({"interpolation": "lanczos"}, "interpolation of a.pth is 'lanczos', .* --interpolation"),
        ({"input_size": [3, 160, 192]}, "size of a.pth is '160x192'"),
        ({"crop_mode": "squash"}, "crop ratio of a.pth is 'squash', .* say --crop-ratio"),
        ({"mean": ["a", "b", "c"]}, "mean of a.pth is"),
        ({"mean": [float("nan")] * 3}, "mean of a.pth is"),
        ({"std": [0.0, 0.1, 0.1]}, "std of a.pth is"),
        ({"crop_pct": 1.5}, "crop ratio of a.pth is 1.5"),
        ({"crop_pct": np.array([0.9, 0.9])}, r"crop ratio of a.pth is \[0.9, 0.9\]"),
        ({"mean": {"r": 0.5}}, "mean of a.pth is"),
        ({"std": np.array([0.5, 0.5])}, "std of a.pth is"),
        ({"input_size": ["a"]}, "size of a.pth is 'a', .* say --size"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(said, sentence):
    with pytest.raises(UserError, match=sentence):
        resolve(recorded_preprocessing.of_timm(said, "config.json"))


def test_timm_means_pixels_from_0_to_1_and_leaves_out_what_it_does_not_know():
    said = {"mean": [0.485, 0.456, 0.406], "std": 0.5, "img_size": 192, "crop_pct": 0.9,
            "interpolation": "random", "crop_mode": "center", "input_size": None}  # fmt: skip
    values = {key: value for key, (value, _) in recorded_preprocessing.of_timm(said, "x").items()}
    assert values == {"mean": TORCHVISION.mean, "std": (127.5,) * 3, "size": 192, "crop_ratio": 0.9}
    side = {"input_size": [224], "mean": np.full(3, 0.5, np.float32), "crop_pct": np.float64(0.9)}
    values = {key: value for key, (value, _) in recorded_preprocessing.of_timm(side, "x").items()}
    assert values == {"size": 224, "mean": (127.5,) * 3, "crop_ratio": 0.9}
    for size in (np.array(224), np.array([3, 224, 224]), (224,), np.int64(224)):
        assert recorded_preprocessing.of_timm({"input_size": size}, "x") == {"size": (224, "x")}
    nothing = {"mean": None, "std": None, "interpolation": "", "crop_pct": None, "img_size": None}
    assert recorded_preprocessing.of_timm(nothing, "x") == {}


def test_means_of_bytes_are_taken_as_they_are():
    bytes_of = {"mean": [123.675, 116.28, 103.53], "std": (58.395, 57.12, 57.375)}
    found = recorded_preprocessing.of_timm(bytes_of, "args")
    assert found["mean"][0] == (123.675, 116.28, 103.53) and found["std"][0][2] == 57.375
    only_differences = recorded_preprocessing.of_timm(
        {"mean": [123.675] * 3, "std": [1, 1, 1]}, "args"
    )
    assert only_differences["std"][0] == (1.0, 1.0, 1.0)


def test_a_record_of_other_values_is_refused_by_name():
    record = {"color": "BGR", "mean": np.full(3, 100.0), "std": 5}
    with pytest.raises(UserError, match="the file says that the std of a.pth is 5, .* say --std"):
        resolve(recorded_preprocessing.of_record(record), flags(color="rgb"))
    given = flags(color="rgb", std=[50.0, 51.0, 52.0])
    found, _, _ = resolve(recorded_preprocessing.of_record(record), given)
    assert (found.mean, found.std) == ((100.0,) * 3, (50.0, 51.0, 52.0))
    with pytest.raises(UserError, match="the colour order of a.pth is .*, .* say --color"):
        resolve(recorded_preprocessing.of_record({"color": np.array(["RGB", "BGR"])}))


@pytest.mark.parametrize(
    "text, names",
    [
        ("apple\npear\n\n", ["apple", "pear"]),
        ("\ufeffBirne\r\nÄpfel\r\n", ["Birne", "Äpfel"]),
        ('["apple", "pear"]', ["apple", "pear"]),
        ('{"label_names": ["apple", "pear"]}', ["apple", "pear"]),
    ],
)
def test_class_names_are_read(tmp_path, text, names):
    (tmp_path / "names.txt").write_bytes(text.encode())
    assert stated_preprocessing.read_class_names(tmp_path / "names.txt") == names


def test_class_names_that_are_none_or_too_few_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text('{"names": 3}')
    with pytest.raises(UserError, match="a.txt holds no class names; give one a line"):
        flags(class_names=tmp_path / "a.txt")
    with pytest.raises(UserError, match="cannot read the class names in .*b.txt .No such file"):
        flags(class_names=tmp_path / "b.txt")
    (tmp_path / "c.txt").write_text("apple\npear")
    with pytest.raises(UserError, match="--class-names has 2 class names, .* has 10 classes"):
        resolve(flags(class_names=tmp_path / "c.txt"))


# ---------------------------------------------------------------- files


def test_a_folder_of_the_hub_says_its_preprocessing(tmp_path):
    tensors = layouts.export(state_of("RepGhost050"), "RepGhost050", "timm")
    save_file(
        {key: np.ascontiguousarray(value) for key, value in tensors.items()},
        tmp_path / "model.safetensors",
    )
    names = [f"class {i}" for i in range(10)]
    config = {
        "architecture": "repghostnet_050",
        "label_names": names,
        "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 160, 160],
                           "crop_pct": 0.95, "interpolation": "bilinear"},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = checkpoint.read(tmp_path / "model.safetensors")
    half = (127.5,) * 3
    assert found.preprocessing == Preprocessing("RGB", half, half, 160, "bilinear", 0.95, "pillow")
    assert found.classes == names
    said = {"mean", "std", "size", "crop_ratio", "interpolation", "classes"}
    assert {key for key, origin in found.origins.items() if origin == "config.json"} == said
    assert found.origins["color"].startswith("assumed: ")


def test_the_arguments_of_timms_training_count(tmp_path):
    tensors = layouts.export(state_of("RepGhost050"), "RepGhost050", "repghost")
    kinds = {"float32": "torch.FloatStorage", "int64": "torch.LongStorage"}
    tree = {key: whole(kinds[str(value.dtype)], value) for key, value in tensors.items()}
    args = Namespace(model="x", img_size=192, crop_pct=0.9, mean=[0.5, 0.4, 0.3], std=None,
                     interpolation="", in_chans=3)  # fmt: skip
    write_zip(tmp_path / "a.pth.tar", {"state_dict": tree, "args": args, "epoch": 3})
    found = checkpoint.read(tmp_path / "a.pth.tar")
    assert found.preprocessing.mean == (127.5, 102.0, 76.5)
    assert found.preprocessing.std == TORCHVISION.std
    assert (found.preprocessing.size, found.preprocessing.crop_ratio) == (192, 0.9)
    assert found.origins["mean"] == "the training's arguments in the file"
    assert found.origins["std"] == "assumed: ChengpengChen/RepGhost's for repghostnet_050"


@pytest.mark.parametrize(
    "source, arch, crop_ratio, size, interpolation, backend",
    [
        ("timm", "MobileOneS1", 0.9, 224, "bilinear", "pillow"),
        ("timm", "RepViTM1_0", 0.95, 224, "bicubic", "pillow"),
        ("repvit", "RepViTM1_0", 0.875, 224, "bicubic", "pillow"),
        ("repghost", "RepGhost050", 0.875, 224, "bicubic", "pillow"),
        ("timm", "RepVGGD2se", 1.0, 320, "bilinear", "pillow"),
        ("repvgg", "RepVGGA0", 0.875, 224, "bilinear", "pillow"),
        ("basecls", "RepVGGD2se", 0.875, 320, "bilinear", "opencv"),
        ("apple", "FastViTT8", 0.9, 256, "bicubic", "pillow"),
        ("timm", "FastViTS12", 0.9, 256, "bicubic", "pillow"),
        ("megengine", "RepLKNet31B", 0.875, 224, "bicubic", "opencv"),
        ("replknet", "RepLKNet31B", 0.875, 224, "bicubic", "pillow"),
        ("mmpretrain", "RepVGGD2se", 0.875, 224, "bilinear", "pillow"),
        ("mmpretrain", "MobileOneS4", 0.875, 224, "bilinear", "pillow"),
        ("replknet", "RepLKNet31L", 1.0, 384, "bicubic", "pillow"),
    ],
)
def test_habits_are_those_that_each_source_publishes(
    source, arch, crop_ratio, size, interpolation, backend
):
    layout = next(s for s in layouts.SOURCES if s.name == source and s.archs[:6] == arch[:6])
    foreign = recognition.Foreign(layout, arch, {}, 1000, {}, [])
    found, _, origins = stated_preprocessing.resolve(foreign.habit, classes=1000, path="a")
    assert (found.crop_ratio, found.size) == (crop_ratio, size)
    assert (found.interpolation, found.resize_backend) == (interpolation, backend)
    name = catalog.published(source, arch).name
    assert origins["crop_ratio"] == f"assumed: {layout.title.partition(',')[0]}'s for {name}"


def test_names_that_networks_of_both_kinds_have_need_the_colour_order(tmp_path):
    path = tmp_path / "own.pkl"
    path.write_bytes(pickle.dumps(state_of("RepVGGA0")))
    with pytest.raises(UserError, match="takes RGB or BGR images.* give --color rgb or --color bg"):
        checkpoint.read(path)
    for color, mean in (("RGB", TORCHVISION.mean), ("BGR", BASECLS.mean)):
        found = checkpoint.read(path, stated=flags(color=color.lower())).preprocessing
        assert (found.color, found.mean) == (color, mean)
    assert checkpoint.read(path, source="port").preprocessing == BASECLS
    checkpoint.read(path, color_matters=False)


# ---------------------------------------------------------------- out and in again


SMALL = ("RepVGGA0", "RepVGGA0-qa", "MobileOneS1", "RepViTM0_6", "RepGhost050")


@pytest.mark.parametrize("said", [ODD, TORCHVISION, BASECLS], ids=["odd", "torchvision", "basecls"])
@pytest.mark.parametrize(
    "layout, arch",
    [
        (source.name, arch)
        for source in layouts.SOURCES
        for arch in [
            name
            for name in (*SMALL, "FastViTT8")  # RepLKNet's: test_replknet.py
            if fnmatchcase(name, source.archs)
        ][:1]
    ],
)
def test_every_layout_keeps_every_field(tmp_path, layout, arch, said):
    names = [f"class {i}" for i in range(10)]
    before = checkpoint_of(arch, said, names=names)
    path = tmp_path / ("a.pkl" if layout in export.PICKLED else "a.safetensors")
    export.save(before, layout, path)
    after = checkpoint.read(path)
    assert (after.preprocessing, after.classes) == (said, names)
    assert all(np.array_equal(after.state_dict[k], v) for k, v in before.state_dict.items())
    assert set(after.origins.values()) == {"the file"}


@pytest.mark.parametrize("said", [ODD, TORCHVISION], ids=["BGR", "RGB"])
@pytest.mark.parametrize(
    "arch", ["RepVGGA0", "MobileOneS1", "RepViTM0_9", "RepGhost050", "FastViTT8"]
)
def test_a_folder_for_the_hub_keeps_every_field(tmp_path, arch, said):
    names = [f"class {i}" for i in range(10)]
    before = checkpoint_of(arch, said, names=names)
    files = export.save_for_hub(before, tmp_path)
    assert sorted(path.name for path in files) == ["README.md", "config.json", "model.safetensors"]
    after = checkpoint.read(tmp_path / "model.safetensors", arch)
    assert (after.preprocessing, after.classes) == (said, names)
    assert all(np.array_equal(after.state_dict[k], v) for k, v in before.state_dict.items())


def test_the_files_of_a_fastvit_for_the_hub(tmp_path):
    export.save_for_hub(checkpoint_of("FastViTT8", ODD), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["architecture"], config["num_features"]) == ("fastvit_t8", 768)
    cfg = config["pretrained_cfg"]
    with safe_open(tmp_path / "model.safetensors", "numpy") as file:
        for layer, channels in zip(cfg["first_conv"], (3, 3), strict=True):
            assert file.get_tensor(f"{layer}.weight").shape[1] == channels
        assert file.get_tensor(f"{cfg['classifier']}.weight").shape == (10, 768)


def test_the_files_for_the_hub_are_for_rgb_images(tmp_path):
    before = checkpoint_of("RepVGGA0", ODD, names=[f"class {i}" for i in range(10)])
    export.save_for_hub(before, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == "repvgg_a0"
    assert (config["num_classes"], config["num_features"]) == (10, 1280)
    assert config["label_names"][3] == "class 3"
    cfg = config["pretrained_cfg"]
    assert (cfg["input_size"], cfg["crop_pct"], cfg["interpolation"]) == (
        [3, 96, 96],
        0.93,
        "bicubic",
    )
    np.testing.assert_allclose(np.array(cfg["mean"]) * 255, ODD.mean[::-1])
    np.testing.assert_allclose(np.array(cfg["std"]) * 255, ODD.std[::-1])
    with safe_open(tmp_path / "model.safetensors", "numpy") as file:
        kernel = file.get_tensor("stem.conv_kxk.conv.weight")
        assert file.metadata()["format"] == "pt"
    own = before.state_dict["stage0.dense.conv.weight"]
    np.testing.assert_array_equal(kernel, own[:, ::-1])
    card = (tmp_path / "README.md").read_text()
    assert "# repvgg_a0" in card and "7,840,778 parameters" in card
    assert "**Licence**: (fill in)" in card and "**Accuracy**: (fill in)" in card
    assert "local-dir:" in card and "colour order: RGB" in card


def test_the_card_says_how_a_network_was_trained(tmp_path):
    run = {"arguments": {"data": "flowers", "epochs": "3", "lr": "0.1", "recipe": "None"}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    (tmp_path / "metrics.csv").write_text(
        "epoch,val_top1,val_top5\n0,70.5,90.25\n1,72.25,91.5\n2,71,92\n"
    )
    before = checkpoint_of("RepVGGA0", TORCHVISION)
    before.path = tmp_path / "best.pkl"
    export.save_for_hub(before, tmp_path / "hub")
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "**Training**: data flowers, epochs 3, lr 0.1\n" in card
    assert "top-1 72.25 %, top-5 91.50 % on the validation images, after epoch 1" in card
    assert "**Weights**: trained with MegEngine\n" in card

    averaged = "epoch,val_top1,val_top5,ema_top1,ema_top5\n0,70.5,90.25,60,80\n1,69,91,71.5,92\n"
    (tmp_path / "metrics.csv").write_text(averaged)
    export.save_for_hub(before, tmp_path / "hub")
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "top-1 71.50 %, top-5 92.00 % on the validation images, after epoch 1" in card
    for changes in (
        {"path": tmp_path / "latest.pkl"},
        {"origins": {"crop_ratio": "--crop-ratio"}},
    ):
        export.save_for_hub(replace(before, **changes), tmp_path / "hub")
        card = (tmp_path / "hub" / "README.md").read_text()
        assert "**Accuracy**: (fill in)" in card and "**Training**: data flowers" in card


def test_channels_that_timm_feeds(tmp_path):
    """Grey images have no order of colours, and four channels none that timm knows."""
    for channels in (1, 4):
        said = replace(ODD, channels=channels)
        shapes = shapes_of("RepVGGA0", 10, "train", in_chans=channels)
        state = {key: np.full(shape, 1, np.float32) for key, shape in shapes.items()}
        before = checkpoint.Checkpoint("RepVGGA0", "train", 10, None, said, state)
        before.options = {"in_chans": channels}
        if channels == 4:
            with pytest.raises(recognition.ConversionError, match="takes 4 channels that begin"):
                export.save_for_hub(before, tmp_path / "four")
            assert not (tmp_path / "four").exists()
        else:
            export.save_for_hub(before, tmp_path / "grey")
            again = checkpoint.read(tmp_path / "grey" / "model.safetensors")
            assert (again.preprocessing, again.options) == (said, {"in_chans": 1})


def test_the_licence_of_a_known_source_is_on_the_card(tmp_path):
    for classes, first, licence in ((1000, "license: mit\n", "MIT, if"), (10, "library", "(fill")):
        state = state_of("RepVGGA0", classes=classes)
        before = checkpoint.Checkpoint("RepVGGA0", "train", classes, None, TORCHVISION, state)
        before.source = "repvgg (DingXiaoH/RepVGG)"
        export.save_for_hub(before, tmp_path)
        card = (tmp_path / "README.md").read_text()
        assert card.startswith(f"---\n{first}") and f"**Licence**: {licence}" in card


@pytest.mark.parametrize(
    "arch, form, sentence",
    [
        (
            "RepVGGB2g2",
            "train",
            "timm has no RepVGGB2g2; .* basecls, mmpretrain, own, port, repvgg$",
        ),
        ("RepLKNet31B", "train", "no RepLKNet31B; .* megengine, mmpretrain, own, replknet$"),
        ("RepVGGA0", "deploy", "in deploy form"),
        ("MobileOneS0", "backbone", "is a backbone without a classifier, which timm cannot open"),
    ],
)
def test_what_timm_cannot_open_is_refused(tmp_path, arch, form, sentence):
    classes = 10
    if form == "backbone":
        form, classes = "train", 0
    state = {key: np.zeros(shape, np.float32) for key, shape in shapes_of(arch, 10, form).items()}
    small = checkpoint.Checkpoint(arch, form, classes, None, TORCHVISION, state)
    with pytest.raises(recognition.ConversionError, match=sentence):
        export.save_for_hub(small, tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


def test_a_total_stride_is_kept_by_files_and_refused_for_the_hub(tmp_path):
    """Nothing in the names and shapes of this form tells it."""
    shapes = shapes_of("RepVGGA0", 10, "deploy", stride=8)
    state = {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}
    small = checkpoint.Checkpoint("RepVGGA0", "deploy", 10, None, TORCHVISION, state)
    small.options = {"stride": 8}
    for layout, name in (("repvgg", "a.safetensors"), ("basecls", "a.pkl"), ("own", "b.pkl")):
        export.save(small, layout, tmp_path / name)
        again = checkpoint.read(tmp_path / name)
        assert (again.options, again.note) == ({"stride": 8}, None)
        with pytest.raises(checkpoint.CheckpointError, match="stride of 8, but --stride 32 was"):
            checkpoint.read(tmp_path / name, stride=32)
    with pytest.raises(
        recognition.ConversionError, match="with a total stride of 8, which the check"
    ):
        export.save_for_hub(small, tmp_path / "hub")


def test_every_published_name_has_a_licence_or_says_that_it_is_unknown():
    known = {"Apache-2.0", "MIT", "BSD-3-Clause", "Apple's own", "unknown"}
    assert {entry.licence for entry in catalog.PUBLISHED} <= known
    for source, arch, licence in (
        ("timm", "RepGhost050", "MIT"),
        ("timm", "FastViTT8", "Apple's own"),
        ("megengine", "RepLKNet31B", "Apache-2.0"),
        ("replknet", "RepLKNet31L", "MIT"),
    ):
        assert catalog.published(source, arch).licence == licence
    assert "unknown" not in {entry.licence for entry in catalog.PUBLISHED}


def test_architectures_of_the_catalog_exist():
    assert {entry.arch for entry in catalog.PUBLISHED} <= set(models.list_models())


@pytest.mark.parametrize(
    "stated, expected",
    [
        ({}, (320, 1.0)),
        ({"size": (224, "--size")}, (224, 0.875)),
        ({"size": (384, "--size")}, (384, 1.0)),
        ({"size": (224, "--size"), "crop_ratio": (0.95, "--crop-ratio")}, (224, 0.95)),
    ],
)
def test_smaller_images_than_the_sources_are_cropped_as_usual(
    stated, expected, tmp_path, monkeypatch
):
    small = {"depths": (1, 1, 1, 1), "width": (0.25, 0.25, 0.25, 0.25), "se": "before"}
    change_architecture(monkeypatch, "RepVGGD2se", models.repvgg.RepVGG, small)
    tensors = layouts.export(state_of("RepVGGD2se", classes=1000), "RepVGGD2se", "repvgg")
    path = tmp_path / "d2se.pth"
    path.write_bytes(pickle.dumps(tensors))
    found = checkpoint.read(path, "RepVGGD2se", stated=stated).preprocessing
    assert (found.size, found.crop_ratio) == expected
