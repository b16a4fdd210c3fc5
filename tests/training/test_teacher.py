from dataclasses import replace

import models

import megengine as mge
import numpy as np
import pytest

from data.transforms import Preprocessing
from training.teacher import Teacher, open_teacher
from utils import UserError
from weights import checkpoint

CLASSES = ["apple", "pear", "plum"]
OWN = Preprocessing("BGR", (100.0, 110.0, 120.0), (50.0, 60.0, 70.0))  # unlike the batches


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A checkpoint of a network with BaseCls's preprocessing, and the network."""
    mge.random.seed(0)
    model = models.create("RepGhost050", 3)
    path = tmp_path_factory.mktemp("teacher") / "teacher.pkl"
    checkpoint.save(checkpoint.of_model(model, OWN, CLASSES), path)
    return path, model


def test_it_sees_each_image_in_its_own_normalization(file, rng):
    path, model = file
    model.eval()
    given = Preprocessing(size=32)
    images = rng.integers(0, 256, (4, 32, 32, 3), np.uint8)
    batch = np.stack([given.normalize(image) for image in images])
    expected = np.stack([OWN.normalize(image) for image in images])
    teacher = open_teacher(f"repghost_050:{path}", CLASSES, given)
    np.testing.assert_allclose(teacher.convert(batch), expected, atol=1e-5)
    logits = model(mge.Tensor(expected)).numpy()
    got = teacher(batch).numpy()
    np.testing.assert_allclose(got, logits, atol=1e-4 * np.abs(logits).max())
    same_order = Teacher(model, replace(OWN, color="RGB"), given)
    assert not same_order.flip and teacher.flip


@pytest.mark.slow
def test_teachers_are_told_apart_by_their_content(file, tmp_path):
    path, model = file
    copy, other = tmp_path / "copy.pkl", tmp_path / "other.pkl"
    copy.write_bytes(path.read_bytes())
    model.linear.bias[...] = np.ones(3, np.float32)
    checkpoint.save(checkpoint.of_model(model, OWN, CLASSES), other)
    names = [
        open_teacher(f"RepGhost050:{file}", CLASSES, Preprocessing()).name
        for file in (path, copy, other)
    ]
    assert names[0] == names[1] != names[2] and names[0].startswith("RepGhost050, sha256 ")


@pytest.mark.parametrize(
    "text, classes, sentence",
    [
        ("best.pkl", CLASSES, "is not ARCH:FILE"),
        ("RepVGGZ9:{}", CLASSES, "unknown architecture 'RepVGGZ9'"),
        ("RepVGGA0:{}", CLASSES, "of RepGhost050, but RepVGGA0 was expected"),
        ("RepGhost050:none.pkl", CLASSES, "cannot read none.pkl"),
        ("RepGhost050:{}", [*CLASSES, "quince"], "has 3 classes, but 4 were expected"),
        ("RepGhost050:{}", ["a", "b", "c"], "knows other classes than the data, such as 'apple'"),
    ],
)
def test_a_teacher_that_does_not_fit_is_a_sentence(file, text, classes, sentence):
    with pytest.raises(UserError, match=sentence):
        open_teacher(text.format(file[0]), classes, Preprocessing())
