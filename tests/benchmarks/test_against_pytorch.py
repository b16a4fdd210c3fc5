"""A training step against PyTorch's, in processes that take turns."""

import os

import pytest

import benchmark
from benchmarks import against_pytorch, commands, training_worker, workers
from benchmarks.own_process import own_process
from benchmarks.training_step import Point
from benchmarks.turns import Process
from tests.support import ROOT
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


def test_a_process_that_is_killed_between_its_turns(tmp_path):
    (tmp_path / "idle.py").write_text("print('{}', flush=True)\ninput()\n")
    variables = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    with Process("ours", ["idle"], variables, "repair it first") as process:
        assert process.answer() == {}
        process._process.kill()
        process._process.wait()
        with pytest.raises(UserError, match=r"ours crashed \(SIGKILL\); repair it first"):
            process.turn()


def test_a_process_for_functions_that_is_killed():
    message = "the process that measures a step was killed, probably for lack of memory"
    with pytest.raises(UserError, match=message), own_process("a step") as call:
        assert call(os.getpid) != os.getpid()
        call(os._exit, 9)


def test_workers_that_cannot_train():
    with pytest.raises(UserError, match="--point 32x1 has fewer images than the 2 workers"):
        workers.seconds_per_step(Point("RepVGGA0", 32, 1), 2, 1)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_a_worker_that_fails_ends_the_others(count):
    said = rf"a training of NoSuch with {count} workers failed: worker \d: ValueError: unknown arch"
    with pytest.raises(UserError, match=said):
        workers.seconds_per_step(Point("NoSuch", 32, 2), count, 1)


@pytest.mark.parametrize(
    "point, said",
    [
        ("64", "'64' is not [ARCH:]PIXELSxBATCH"),
        ("x", "is not [ARCH:]PIXELSxBATCH"),
        ("64x0", "is not [ARCH:]PIXELSxBATCH"),
        (":64x16x", "is not [ARCH:]PIXELSxBATCH"),
        ("NoSuch:64x16", "argument --point: unknown architecture"),
        ("RepVGGB*:64x16", "argument --point: unknown architecture"),
        ("all:64x16", "argument --point: unknown architecture"),
    ],
)
def test_points_that_are_none(point, said, capsys):
    with pytest.raises(SystemExit):
        benchmark.parse_args(["train", "--point", point])
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, said",
    [
        ("train --threads 2", "--threads and --avx2 are for --against pytorch"),
        ("train --avx2", "--threads and --avx2 are for --against pytorch"),
        ("data --data a b --workers 4", "--workers is for one --data"),
        ("infer --entry ema", "--entry needs --model"),
    ],
)
def test_flags_that_would_have_no_effect(flags, said, capsys):
    with pytest.raises(SystemExit):
        benchmark.parse_args(flags.split())
    assert said in capsys.readouterr().err


def test_all_points_are_checked_before_the_first_is_measured(monkeypatch):
    monkeypatch.setattr(against_pytorch, "find_spec", lambda _: True)
    monkeypatch.setattr(against_pytorch, "measure", None)
    many = len(os.sched_getaffinity(0)) + 1
    for flags, said in (
        (["--threads", "1", str(many)], f"--threads {many} is more than the"),
        (["--point", "64x16", "RepVGGplusL2pse:64x16"], "timm has no RepVGGplusL2pse"),
    ):
        with pytest.raises(UserError, match=said):
            benchmark.main(["train", "--against", "pytorch", *flags])


def test_points_of_several_architectures():
    args = benchmark.parse_args(["train", "--point", "64x16", "repghost_100:32x8"])
    assert commands.points(args) == [Point("RepVGGA0", 64, 16), Point("RepGhost100", 32, 8)]
