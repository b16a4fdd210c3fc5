"""The documented efficiency of several hosts follows from the all-reduces that were measured."""

import json

import pytest

from tests.support import ROOT
from tests.training import scaling


def figures(name):
    return json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text())["figures"]


def test_the_fit_finds_what_an_all_reduce_consists_of():
    points = [
        {"workers": count, "megabytes": 50, "gigabits": gigabits, "cores": 2}
        for count in (2, 4)
        for gigabits in (1, 10, None)
    ]
    for point in points:
        wire, sent = scaling.terms(point)
        point["fastest"] = 1.1 * wire + 2 * sent
    assert scaling.terms(points[0]) == pytest.approx((0.4, 0.05))
    assert scaling.fit(points) == pytest.approx((1.1, 2))
    (first, *_), last = scaling.predict(points), scaling.predict(points)[-1]
    assert first["all_reduce_1"] == pytest.approx(1.1 * 0.4 + 2 * 0.05, abs=1e-3)
    # 512 images take one host `compute` s; on 64 hosts, 1/64 of that and 2 * 63/64 * 50 MB to send
    seconds = 1.1 * 0.08 * 63 / 64 + 2 * 0.1 * 63 / 64
    compute = 512 / scaling.SLOW
    step = compute / 64 + seconds
    assert last["slow_10"] == pytest.approx(100 * compute / (64 * step), abs=0.1)


def test_the_documented_efficiency_is_that_of_the_measured_all_reduces():
    assert figures("scaling") == scaling.predict(figures("all_reduce"))
