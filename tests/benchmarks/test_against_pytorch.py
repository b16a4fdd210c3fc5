"""A training step against PyTorch's, in processes that take turns."""

import os

import pytest

import benchmark
from benchmarks import against_pytorch, training_worker
from benchmarks.training_step import Point
from benchmarks.turns import Process
from utils import UserError

POINT = Point("RepGhost050", 32, 2)


def test_ratios_are_of_the_steps_that_followed_each_other():
    seconds = {"PyTorch": [2.0, 4.0, 8.0], "ours": [1.0, 4.0, 2.0]}
    rows = [against_pytorch.row(POINT, 2, variant, seconds, 100.0) for variant in seconds]
    assert [row["times_pytorch"] for row in rows] == [1.0, 2.0]
    assert [row["seconds"] for row in rows] == [4.0, 2.0]
    assert [row["images_per_second"] for row in rows] == [0.5, 1.0]
    assert (rows[1]["fastest"], rows[1]["slowest"], rows[1]["threads"]) == (1.0, 4.0, 2)


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(against_pytorch, "find_spec", lambda name: name)


def test_pytorch_is_no_requirement(monkeypatch):
    monkeypatch.setattr(against_pytorch, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs torch and timm.*pip install torch timm"):
        against_pytorch.measure(POINT, 1, 1)


def test_a_network_that_timm_does_not_have(installed):
    with pytest.raises(UserError, match="timm has no RepVGGplusL2pse"):
        against_pytorch.measure(Point("RepVGGplusL2pse", 32, 2), 1, 1)


def test_more_threads_than_cores(installed):
    count = len(os.sched_getaffinity(0)) + 1
    with pytest.raises(UserError, match=f"--threads {count} is more than"):
        against_pytorch.measure(POINT, count, 1)


@pytest.mark.slow
def test_both_variants_run_in_turns_on_the_same_cores(installed, monkeypatch):
    """PyTorch's place is taken by this project's own step."""
    monkeypatch.setattr(against_pytorch, "timm_name", lambda arch: arch)
    monkeypatch.setattr(
        against_pytorch,
        "Process",
        lambda name, command, variables, advice: Process(
            name, [command[0], "ours", *command[2:]], variables, advice
        ),
    )
    steps = []
    rows = against_pytorch.measure(POINT, 1, 2, after_step=lambda: steps.append(1))
    assert [row["variant"] for row in rows] == ["PyTorch", "ours"] and len(steps) == 4
    assert all(0 < row["fastest"] <= row["seconds"] <= row["slowest"] for row in rows)
    assert all(50 < row["peak_mb"] < 5000 for row in rows)


def test_a_process_that_fails(tmp_path):
    variables = {"REPARAM_CORES": str(min(os.sched_getaffinity(0)))}
    command = [training_worker.__name__, "ours", "NoSuchNetwork", "32", "2", "1"]
    with (
        pytest.raises(UserError, match="ours ended with exit status 1.*NoSuchNetwork.*; repair it"),
        Process("ours", command, variables, "repair it first") as process,
    ):
        process.answer()


@pytest.mark.parametrize("point", ["64", "x", "64x0", "NoSuch:64x16", ":64x16x"])
def test_points_that_are_none(point, capsys):
    with pytest.raises((SystemExit, UserError)):
        benchmark.parse_args(["train", "--point", point])


def test_points_of_several_architectures():
    args = benchmark.parse_args(["train", "--point", "64x16", "repghost_100:32x8"])
    assert benchmark.points(args) == [Point("RepVGGA0", 64, 16), Point("RepGhost100", 32, 8)]
