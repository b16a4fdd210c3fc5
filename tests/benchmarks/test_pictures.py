"""The pictures of benchmark.py infer: what is drawn of known figures."""

import json

import cv2
import numpy as np
import pytest

from benchmarks import pictures
from benchmarks.inference import candidates, turns
from utils import UserError
from weights import catalog


def rows(arch, batch=1, threads=1, train=9.0, deploy=6.0, onnx=4.0):
    variants = dict(zip((*pictures.FORMS, pictures.DEPLOYED), (train, deploy, onnx), strict=True))
    point = {"arch": arch, "size": 224, "batch": batch, "threads": threads}
    return [{**point, "variant": name, "latency_ms": ms} for name, ms in variants.items()]


@pytest.fixture
def drawn(monkeypatch):
    """The axes of each picture that is drawn."""
    axes = []
    real = pictures.as_png

    def as_png(figure):
        axes.extend(figure.axes)
        return real(figure)

    monkeypatch.setattr(pictures, "as_png", as_png)
    return axes


def test_accuracy_over_latency(drawn):
    measured = [
        *rows("RepVGGA0", onnx=5),
        *rows("RepVGGA0", onnx=40, batch=8),
        *rows("RepVGGA0", onnx=3, threads=2),
        *rows("RepGhost100", onnx=2),
        *rows("RepVGGD2se", onnx=50),
        *rows("RepVGGA0-qa", onnx=5),  # nobody has published it
    ]
    content = pictures.scatter(measured)
    assert np.ptp(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)) > 200
    (axes,) = drawn
    points = {c.get_label(): c.get_offsets().data.tolist() for c in axes.collections}
    assert points == {"RepVGG": [[5, 72.41], [50, 83.55]], "RepGhost": [[2, 74.218]]}
    assert [text.get_text() for text in axes.texts] == ["A0", "D2se (320 px)", "100"]
    assert "reported" in axes.get_ylabel() and "not measured here" in axes.get_title()
    assert "224 px, batch 1, 1 thread, onnxruntime" in axes.get_xlabel()


def test_both_forms(drawn):
    one = rows("RepVGGA1", train=8, deploy=3)[1:]  # a checkpoint without branches
    pictures.forms([*rows("RepVGGA0", train=10, deploy=5), *one, *rows("RepViTM0_6")])
    (axes,) = drawn
    assert [label.get_text() for label in axes.get_yticklabels()] == ["RepVGGA0", "RepViTM0_6"]
    widths = [[bar.get_width() for bar in bars] for bars in axes.containers]
    assert widths == [[10, 9], [5, 6]]


def test_what_cannot_be_drawn_is_one_sentence():
    with pytest.raises(UserError, match="--scatter needs the variant 'ONNX, onnxruntime'"):
        pictures.scatter(rows("RepVGGA0-qa"))
    with pytest.raises(UserError, match="--forms needs a network in both variants"):
        pictures.forms(rows("RepVGGA0")[1:])


def test_every_published_accuracy_has_its_place():
    """Those of a network's own repository come before those of others, plain ones first."""
    own = {}
    for entry in catalog.PUBLISHED:
        if entry.top1 is not None and entry.source not in ("timm", "basecls", "mmpretrain"):
            own.setdefault(entry.arch, entry.top1)
    for arch, top1 in own.items():
        assert pictures.reported_accuracy(arch)[0] == top1
    assert pictures.reported_accuracy("RepVGGplusL2pse") == (84.06, "320 px")


@pytest.mark.slow
def test_the_flags(command, tmp_path):
    scatter, forms = tmp_path / "scatter.png", tmp_path / "forms.png"
    quick = ("--arch", "RepGhost050", "--size", 32, "--rounds", 1, "--seconds", 0.01)
    point = ("--batch", 1, "--threads", 1)
    variants = ("--variants", "ONNX, onnxruntime", "*form, MegEngine")
    status, out, err = command(
        "benchmark", "infer", *quick, *point, *variants, "--json", "--scatter", scatter,
        "--forms", forms,
    )  # fmt: skip
    assert status == 0, err
    names = [row["variant"] for row in json.loads(out)]
    assert names == [*pictures.FORMS, pictures.DEPLOYED]
    assert min(cv2.imread(str(scatter)).shape[:2]) > 300 and cv2.imread(str(forms)) is not None


def test_a_pattern_that_matches_no_variant_is_one_sentence():
    settings = turns.Settings(1, 1.0, ("none*",))
    sentence = r"--variants none\* matches none of the variants '.mge, MegEngine Lite'; give"
    with pytest.raises(UserError, match=sentence):
        settings.select([candidates.Candidate(".mge, MegEngine Lite", "mge_file", "a.mge")])
