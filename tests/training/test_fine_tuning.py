"""train.py --pretrained and --freeze."""

import pickle
import re

import models
from models import equivalence

import numpy as np
import pytest

from tests.support import write_image_folder
from weights import checkpoint, layouts, timm

FLAGS = ["--size", "32", "--batch-size", "8", "--epochs", "1", "--tag", "t", "--print-freq", "1"]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A network of 7 classes, as a file of another repository that expects BGR, and its folder."""
    root = tmp_path_factory.mktemp("pretrained")
    model = models.create("RepVGGA0", num_classes=7)
    images = np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32)
    equivalence.randomize(model, images)
    state = {key: np.array(value) for key, value in model.state_dict().items()}
    (root / "basecls.pkl").write_bytes(pickle.dumps(layouts.export(state, "RepVGGA0", "basecls")))
    deployed = checkpoint.of_model(models.to_deploy(model), timm.REPVGG.preprocessing)
    checkpoint.save(deployed, root / "deploy.pkl")
    write_image_folder(root / "data", train=4, val=2)
    return root, state


def test_another_class_count_starts_the_head_anew_and_says_so(pretrained, command, tmp_path):
    root, state = pretrained
    status, out, err = command(
        "train", "--data", root / "data", "--pretrained", root / "basecls.pkl", "--freeze",
        "--save", tmp_path, *FLAGS,
    )  # fmt: skip
    assert status == 0, err
    assert "288 tensors kept; dropped, as it has 7 classes: linear.weight, linear.bias" in out
    found = checkpoint.read(tmp_path / "RepVGGA0" / "t" / "latest.pkl")
    assert found.num_classes == 3 and found.preprocessing.color == "BGR"
    assert found.classes == ["apple", "pear", "plum"]
    for key, value in state.items():  # frozen: all but the head, statistics included, is as it was
        if not key.startswith("linear."):
            np.testing.assert_array_equal(found.state_dict[key], value)
    assert found.state_dict["linear.weight"].shape == (3, 1280)
    resume = ["--resume", "auto", "--freeze", "--data", root / "data", "--save", tmp_path]
    assert command("train", *resume, *FLAGS)[0] == 0


def test_without_freeze_everything_learns(pretrained, command, tmp_path):
    root, state = pretrained
    status, _, err = command(
        "train", "--data", root / "data", "--pretrained", root / "basecls.pkl",
        "--save", tmp_path, *FLAGS,
    )  # fmt: skip
    assert status == 0, err
    found = checkpoint.read(tmp_path / "RepVGGA0" / "t" / "latest.pkl").state_dict
    for key in ("stage0.dense.conv.weight", "stage2.1.identity.running_mean"):
        assert not np.array_equal(found[key], state[key])


@pytest.mark.parametrize(
    "file, flags, sentence",
    [
        ("deploy.pkl", [], "is in deploy form, but the train form was expected"),
        ("basecls.pkl", ["--arch", "RepVGGA1"], "holds RepVGGA0, but RepVGGA1 was asked for"),
        (None, ["--freeze"], "--freeze trains the classifier alone; give the weights"),
    ],
)
def test_what_cannot_be_fine_tuned_is_a_sentence(
    pretrained, command, tmp_path, file, flags, sentence
):
    root, _ = pretrained
    source = ["--pretrained", root / file] if file else []
    shared = ["--data", root / "data", "--save", tmp_path, *FLAGS]
    status, _, err = command("train", *shared, *source, *flags)
    assert status == 2 and re.search(sentence, err)
    assert not list(tmp_path.rglob("*.pkl"))


@pytest.mark.parametrize(
    "names, said", [(["apple", "pear", "plum"], 0), (["apple", "fig", "x"], 1)]
)
def test_a_classifier_of_other_classes_is_kept_with_a_warning(
    names, said, pretrained, command, tmp_path
):
    root, _ = pretrained
    file = tmp_path / "best.pkl"
    model = models.create("RepGhost050", 3)
    checkpoint.save(checkpoint.of_model(model, timm.REPVGG.preprocessing, names), file)
    status, out, err = command(
        "train", "--arch", "RepGhost050", "--data", root / "data", "--pretrained", file, "--freeze",
        "--save", tmp_path, *FLAGS,
    )  # fmt: skip
    assert status == 0, err
    warning = "the weights have the class 'fig' where the data has 'pear'"
    assert out.count(warning) == said
    status, out, err = command(
        "train", "--arch", "RepGhost050", "--data", root / "data", "--pretrained", file, "--freeze",
        "--save", tmp_path / "auto", "--resume", "auto", *FLAGS,
    )  # fmt: skip
    assert status == 0 and out.count(warning) == said, err  # there is no run yet


def test_class_names_of_the_weights_are_not_asked_of_the_run(pretrained, command, tmp_path):
    root, _ = pretrained
    (tmp_path / "names.txt").write_text("\n".join("abcdefg"))
    flags = [
        "--data", root / "data", "--pretrained", root / "basecls.pkl", "--freeze", *FLAGS,
        "--class-names", tmp_path / "names.txt", "--save", tmp_path, "--resume", "auto",
    ]  # fmt: skip
    for _ in range(2):  # a new run, and that run again
        status, out, err = command("train", *flags)
        assert status == 0, err
    assert "resum" in out
