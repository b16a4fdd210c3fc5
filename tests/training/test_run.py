"""train.py and test.py as processes: output, exact resume after SIGKILL, signals, bad input."""

import json
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time

import models

import numpy as np
import onnx
import pytest

from data.transforms import BASECLS
from tests.data.forms import tar
from tests.data.test_parquet import write
from tests.support import ROOT, slow_but, write_image_folder
from tests.training.test_tensorboard import points
from training import find_lr
from weights import checkpoint

# 48 images in batches of 8 at 32 px: 6 steps an epoch
SMALL = ["--arch", "RepVGGA0", "--size", "32", "--batch-size", "8", "--epochs", "3",
         "--print-freq", "1", "--warmup-epochs", "1", "--nesterov"]  # fmt: skip
# a network with dropout, and all that has state or changes a step; 2 epochs, a teacher to come
EVERYTHING = ["--arch", "RepGhost050", "--size", "32", "--batch-size", "8", "--epochs", "2",
              "--print-freq", "1", "--optimizer", "muon", "--lr", "0.02", "--accumulate", "2",
              "--decay-rule", "timm", "--label-smoothing", "0.1", "--ema", "0.9",
              "--agc", "0.02", "--clip-norm", "1", "--precise-bn", "8", "--schedule", "step",
              "--milestones", "0.5", "1.5", "--warmup-epochs", "0.3", "--warmup-lr", "1e-6",
              "--distillation", "soft", "--distillation-temperature", "2"]  # fmt: skip


def start(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-u", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def finish(*arguments):
    process = start(*arguments)
    out, _ = process.communicate()
    return process.returncode, out


def wait_for(process, pattern):
    """Read the process's output up to the first line that matches."""
    for line in process.stdout:
        if re.search(pattern, line):
            return
    raise AssertionError(f"the process ended without printing {pattern}")


def equal(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    return a == b


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that was never interrupted: its data and its folder."""
    root = tmp_path_factory.mktemp("straight")
    data = write_image_folder(root / "data")
    status, out = finish("train.py", "--data", data, "--save", root, "--tag", "a", *SMALL)
    assert status == 0, out
    return data, root / "RepVGGA0" / "a", out


def test_a_run_leaves_everything(straight):
    _, folder, out = straight
    names = {file.name for file in folder.iterdir()}
    (events,) = (name for name in names if name.startswith("events.out.tfevents."))
    assert names - {events} == {
        "latest.pkl",
        "best.pkl",
        "log.txt",
        "metrics.csv",
        "curves.png",
        "run.json",
    }
    assert (folder / "log.txt").read_text() in out
    header, *rows = (folder / "metrics.csv").read_text().splitlines()
    assert header == "epoch,step,lr,train_loss,train_top1,val_loss,val_top1,val_top5"
    assert [row.split(",")[:2] for row in rows] == [["1", "6"], ["2", "12"], ["3", "18"]]
    assert [float(row.split(",")[2]) for row in rows] == [0.1 / 32, 0.1 / 64, 0.0]
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert {"arguments", "versions"} == json.loads((folder / "run.json").read_text()).keys()
    assert "learning rate 0.003125 (--lr 0.1 x 8/256)" in out
    assert out.splitlines()[-1].startswith("best top-1 ")
    assert re.search(r"images/s \d+, data wait \d+ %, memory \d+ MB, [\d:]+ left", out)
    shown = points(folder)
    assert all(len(values) == 1 for values in shown.values())
    steps = {name: {step for n, step in shown if n == name} for name, _ in shown}
    assert steps["step/loss"] == set(range(1, 19)) and steps["epoch/val_top1"] == {6, 12, 18}
    assert "CUDA" not in out and "Warning" not in out


@pytest.mark.slow
def test_a_run_goes_on_as_it_computed_before(straight, tmp_path, monkeypatch):
    """What was computed operator by operator stays so, also with --low-memory: the same bits."""
    data, *_ = straight
    first, second = tmp_path / "first", tmp_path / "second"
    command = ["train.py", "--data", data, "--tag", "b", *SMALL]
    monkeypatch.setenv("REPARAM_CPU", "matmul")
    process = start(*command, "--save", first)
    wait_for(process, "epoch 2 step 1/6")
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    shutil.copytree(first, second)
    monkeypatch.delenv("REPARAM_CPU")
    for folder, others in ((first, []), (second, ["--low-memory"])):
        status, out = finish(*command, "--save", folder, *others, "--resume", "auto")
        assert status == 0 and "warning: " not in out, out
    for name in ("latest.pkl", "best.pkl"):
        a, b = (pickle.loads((run / "RepVGGA0/b" / name).read_bytes()) for run in (first, second))
        assert equal(a, b), name


@pytest.mark.parametrize("step", slow_but([9], [3, 9, 13]))
def test_killed_at_any_step_and_resumed_it_ends_with_the_same_bits(straight, tmp_path, step):
    data, folder, _ = straight
    command = ["train.py", "--data", data, "--save", tmp_path, "--tag", "b", "--save-freq", "2"]
    process = start(*command, *SMALL)
    wait_for(process, rf"epoch {step // 6 + 1} step {step % 6}/6")
    time.sleep(0.1 * step % 0.3)  # somewhere within the step, or while saving
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    status, out = finish(*command, *SMALL, "--resume", "auto")
    assert status == 0 and "resuming" in out, out
    resumed = tmp_path / "RepVGGA0" / "b"
    for name in ("latest.pkl", "best.pkl"):
        a, b = (pickle.loads((run / name).read_bytes()) for run in (folder, resumed))
        assert equal(a, b), name
    assert (folder / "metrics.csv").read_bytes() == (resumed / "metrics.csv").read_bytes()
    for name in ("step/loss", "epoch/val_loss"):
        runs = points(folder), points(resumed)
        a, b = ({k: v for k, v in run.items() if k[0] == name} for run in runs)
        assert a == b


@pytest.mark.slow
@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_killed_on_an_archive_it_ends_with_the_bits_of_the_folder(
    straight, tmp_path, monkeypatch, form
):
    monkeypatch.setenv("REPARAM_CACHE", str(tmp_path / "cache"))
    data, folder, _ = straight
    packed = tar(tmp_path / "data.tar", data) if form == "tar" else write(data, tmp_path / "hf")
    command = ["train.py", "--data", packed, "--save", tmp_path, "--tag", "b", "--save-freq", "2"]
    process = start(*command, *SMALL)
    wait_for(process, "epoch 2 step 3/6")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    status, out = finish(*command, *SMALL, "--resume", "auto")
    assert status == 0 and "resuming" in out, out
    resumed = tmp_path / "RepVGGA0" / "b"
    for name in ("latest.pkl", "best.pkl"):
        a, b = (pickle.loads((run / name).read_bytes()) for run in (folder, resumed))
        assert equal(a, b), name


@pytest.fixture(scope="module")
def everything(straight):
    """The same with EVERYTHING switched on: its flags, its folder and its output."""
    data, folder, _ = straight
    root = folder.parent.parent
    teacher = models.create("RepGhost050", 3)
    checkpoint.save(checkpoint.of_model(teacher, BASECLS), root / "teacher.pkl")
    flags = ["--data", data, *EVERYTHING, "--teacher", f"RepGhost050:{root / 'teacher.pkl'}"]
    status, out = finish("train.py", "--save", root, "--tag", "e", *flags)
    assert status == 0, out
    return flags, root / "RepGhost050" / "e", out


@pytest.mark.slow
def test_with_everything_switched_on_too(everything, tmp_path):
    flags, folder, _ = everything
    command = ["train.py", *flags, "--save", tmp_path, "--tag", "b", "--save-freq", "3"]
    # the second time in the evaluation, when the network has other weights on loan
    for line, number in ("epoch 1 step 4/6", signal.SIGKILL), ("epoch 1 step 6/6", signal.SIGTERM):
        process = start(*command, "--resume", "auto")
        wait_for(process, line)
        process.send_signal(number)
        process.communicate()
        assert process.returncode in (-number, 128 + number)
    status, out = finish(*command, "--resume", "auto")
    assert status == 0 and "resuming" in out and "after step 6 of 12" in out, out
    resumed = tmp_path / "RepGhost050" / "b"
    for name in ("latest.pkl", "best.pkl"):
        a, b = (pickle.loads((run / name).read_bytes()) for run in (folder, resumed))
        assert equal(a, b), name
    assert (folder / "metrics.csv").read_bytes() == (resumed / "metrics.csv").read_bytes()


@pytest.mark.slow
def test_the_average_is_evaluated_and_is_what_best_holds(everything, command):
    flags, folder, out = everything
    header, *rows = (folder / "metrics.csv").read_text().splitlines()
    assert header.endswith("val_top5,ema_loss,ema_top1,ema_top5") and len(rows) == 2
    columns = {
        name: [float(row.split(",")[i]) for row in rows] for i, name in enumerate(header.split(","))
    }
    best = max(columns["ema_top1"])
    assert f"best top-1 of the averaged weights {best:.2f} %" in out.splitlines()[-1]
    latest, kept = (
        pickle.loads((folder / name).read_bytes()) for name in ("latest.pkl", "best.pkl")
    )
    average, weights = latest["training"]["ema"], latest["state_dict"]
    assert average.keys() == weights.keys()
    name = "stage1.0.ghost1.dense.conv.weight"
    assert not np.array_equal(average[name], weights[name])
    if columns["ema_top1"][1] > columns["ema_top1"][0]:  # the best epoch is the last
        assert np.array_equal(kept["state_dict"][name], average[name])
    # what was evaluated is what was saved, precise statistics and all
    status, out, _ = command("test", "--data", flags[1], "--model", folder / "best.pkl", "--json")
    assert status == 0
    result = json.loads(out)["results"][0]
    assert 100 * result["correct1"] / result["total"] == pytest.approx(best)


@pytest.mark.slow
def test_resuming_with_another_teacher_is_a_sentence(everything, command, tmp_path):
    flags, folder, _ = everything
    resume = ["--save", tmp_path, "--tag", "c", "--resume", folder / "latest.pkl"]
    status, _, err = command("train", *flags[:-2], *resume)
    assert status == 2 and "had teacher RepGhost050, sha256 " in err and "now it is None" in err
    status, _, err = command("train", *flags, *resume, "--ema", "0.8")
    assert status == 2 and "had ema 0.9, and now it is 0.8; give the same flags" in err


@pytest.mark.parametrize("number", slow_but([signal.SIGTERM], [signal.SIGINT, signal.SIGTERM]))
def test_a_signal_saves_before_leaving(straight, tmp_path, number):
    data, *_ = straight
    command = ["train.py", "--data", data, "--save", tmp_path, "--tag", "b", "--save-freq", "0"]
    process = start(*command, *SMALL)
    wait_for(process, "step 2/6")
    process.send_signal(number)
    out, _ = process.communicate()
    assert process.returncode == 128 + number
    saved = tmp_path / "RepVGGA0" / "b" / "latest.pkl"
    assert f"stopped by {number.name} after step" in out and f"--resume {saved}" in out
    assert pickle.loads(saved.read_bytes())["training"]["step"] >= 2


def test_resuming_something_else_is_a_sentence(straight, command, tmp_path):
    data, folder, _ = straight
    shared = ["--data", data, *SMALL]

    def resume(*flags, file="latest.pkl", tag="c"):
        save = ["--save", tmp_path, "--tag", tag]
        return command("train", *shared, *save, "--resume", folder / file, *flags)

    status, _, err = resume("--lr", "0.2")
    assert status == 2 and "had lr 0.1, and now it is 0.2; give the same flags" in err
    status, _, err = resume("--arch", "RepVGGA1")
    assert status == 2 and "of RepVGGA0, but RepVGGA1 was expected" in err
    status, _, err = resume(file="best.pkl")
    assert status == 2 and "weights only" in err
    status, _, err = command("train", *shared, "--save", folder.parent.parent, "--tag", "a")
    assert status == 2 and "already holds a run" in err


@pytest.mark.slow
def test_find_lr_suggests_a_rate_and_keeps_no_weights(straight, command, tmp_path, monkeypatch):
    data, *_ = straight
    monkeypatch.setattr(find_lr, "rates", lambda steps: np.geomspace(1e-3, 10, 30))
    flags = ["--data", data, "--save", tmp_path, "--tag", "f", *SMALL, "--find-lr"]
    status, out, err = command("train", *flags)
    assert status == 0, err
    assert re.search(r"the loss falls most steeply at --lr [\d.e-]+: ", out.splitlines()[-1])
    folder = tmp_path / "RepVGGA0" / "f"
    assert (folder / "find_lr.png").read_bytes().startswith(b"\x89PNG")
    header, *rows = (folder / "find_lr.csv").read_text().splitlines()
    assert header == "lr,loss,smoothed" and len(rows) > 5
    assert float(rows[0].split(",")[0]) == pytest.approx(1e-3)
    assert not list(folder.glob("*.pkl"))


def test_finished_runs_are_not_trained_again(straight, tmp_path):
    data, folder, _ = straight
    shutil.copytree(folder, tmp_path / "RepVGGA0" / "a")
    command = ["train.py", "--data", data, "--save", tmp_path, "--tag", "a", "--resume", "auto"]
    status, out = finish(*command, *SMALL)
    assert status == 0 and "after step 18 of 18" in out
    copy = tmp_path / "RepVGGA0" / "a" / "latest.pkl"
    assert copy.read_bytes() == (folder / "latest.pkl").read_bytes()


def test_testing_before_and_after_fusion(straight, command):
    data, folder, _ = straight
    status, out, _ = command(
        "test", "--data", data, "--arch", "RepVGGA0", "--model", folder / "best.pkl",
        "--val-batch-size", "4", "--deploy", "0", "--switch-deploy", "1", "--print-freq", "2",
    )  # fmt: skip
    assert status == 0
    counts = re.findall(r"top-1 .* \((\d+) of 15\)", out)
    assert len(counts) == 2 and counts[0] == counts[1]
    deployed = folder / "best-deploy.pkl"
    assert f"saved the deploy form: {deployed}" in out
    assert len(pickle.loads(deployed.read_bytes())["state_dict"]) == 46
    status, out, _ = command("test", "--data", data, "--model", deployed, "--deploy", "1", "--json")
    result = json.loads(out)["results"][0]
    assert status == 0 and result["correct1"] == int(counts[0]) and result["total"] == 15
    status, _, err = command("test", "--data", data, "--model", deployed, "--deploy", "0")
    assert status == 2 and "is in deploy form, but --deploy 0 expects the train form" in err
    status, _, err = command(
        "test", "--data", data, "--model", folder / "best.pkl", "--deploy", "1"
    )
    assert status == 2 and "is in train form, but --deploy 1 expects the deploy form" in err
    status, _, err = command("test", "--model", folder / "best.pkl")
    assert status == 2 and "has 10 classes, but the network was trained on 3" in err
    deployed.unlink()


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(straight, tmp_path):
    data, *_ = straight
    flags = ["--data", data, "--save", tmp_path, "--tag", "d", "--save-freq", "1", *SMALL]
    status, out = finish("train.py", *flags, "--lr", "1e30", "--warmup-epochs", "0")
    assert status == 2
    last = out.splitlines()[-1]
    assert re.search(
        r"error: the (loss|state of the network) became infinite or not a number at step \d+", last
    )
    assert "Traceback" not in out
    latest = tmp_path / "RepVGGA0" / "d" / "latest.pkl"
    if latest.exists():
        state = pickle.loads(latest.read_bytes())["state_dict"]
        assert str(latest) in last and all(np.isfinite(value).all() for value in state.values())


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--arch", "RepVGGA9"], "unknown architecture 'RepVGGA9'; the nearest names are"),
        (["--data", "nowhere"], "there is no data folder nowhere"),
        (["--batch-size", "9999"], "the batch of 9999 is larger than the 1437 training images"),
        (["--epochs", "0"], "'0' is not a whole number of at least 1"),
        (["--lr", "inf"], "is not a finite number"),
        (["--lr", "-1"], "is not a number above 0"),
        (["--momentum", "1.5"], "is not a number of at least 0 and at most 1"),
        (["--batch-size", "12.5"], "is not a whole number"),
        (["--seed", "-1"], "is not a whole number of at least 0"),
        (["--warmup-epochs", "12"], "leaves nothing of --epochs 12"),
        (["--nesterov", "--momentum", "0"], "--nesterov needs a --momentum above 0"),
        (["--nesterov", "--optimizer", "adamw"], "--nesterov is for --optimizer sgd"),
        (["--optimizer", "lamb"], "invalid choice: 'lamb' (choose from 'sgd', 'adamw', 'muon')"),
        (["--accumulate", "65"], "--accumulate 65 is more than the 64 images"),
        (["--schedule", "step"], "--schedule step and --milestones"),
        (["--step-factor", "0.1"], "--step-factor has an effect with --schedule step only"),
        (["--distillation", "hard"], "--distillation has an effect with --teacher only"),
        (["--optimizer", "adamw", "--momentum", "0.8"], "with --optimizer sgd or muon only"),
        (["--optimizer", "muon", "--momentum", "2"], "argument --momentum"),
        (
            ["--teacher", "RepVGGA0:a.pkl", "--distillation-temperature", "2"],
            "has an effect with --distillation soft only",
        ),
        (
            ["--freeze", "--pretrained", "a.pkl", "--layer-decay", "0.5"],
            "--layer-decay has an effect without --freeze only",
        ),
        (["--freeze", "--pretrained", "a.pkl", "--low-memory"], "an effect without --freeze only"),
        (
            ["--freeze", "--pretrained", "a.pkl", "--drop-path", "0.5"],
            "--drop-path has an effect without --freeze only",
        ),
        (["--size", "9000@0,32@1"], "'9000' is not a whole number of at least 1 and at most 4096"),
        (["--class-names", "a.txt"], "the class names of the --pretrained weights; give these too"),
        (["--find-lr", "--show-samples"], "leave one of them out"),
        (["--mixup", "0.2", "--mix-switch-prob", "0"], "has an effect with --mixup and --cutmix"),
        (["--crop-scale", "0.5", "1", "--padding-crop", "4"], "with --padding-crop 0 only"),
        (["--min-lr", "0.03"], "--min-lr 0.03 is above the learning rate of 0.025"),
        (["--warmup-lr", "0.03"], "--warmup-lr 0.03 is above the learning rate of 0.025"),
        (["--min-lr", "0.03", "--tag", "a", "--resume", "auto"], "--min-lr 0.03 is above the"),
        (["--recipe", "fastvit", "--batch-size", "2"], "--min-lr 1e-05 is above the learning rate"),
        (
            ["--recipe", "repvgg_basecls", "--batch-size", "32"],
            "--warmup-lr 0.02 is above the learning rate",
        ),
        (["--tag", "../other"], "--tag ../other is no folder in"),
        (["--tag", "."], "--tag . is no folder in"),
        (["--milestones", "3"], "--schedule step and --milestones"),
        (
            ["--schedule", "step", "--milestones", "3", "30", "--epochs", "20"],
            "--milestones 30 is never reached in --epochs 20",
        ),
        (["--find-lr", "--resume", "auto"], "leave --resume out"),
        (["--crop-scale", "0.08..0.9", "0.5"], "--crop-scale takes the lower number first"),
        (["--warmup-lr", "0.1", "--warmup-epochs", "0"], "--warmup-lr needs --warmup-epochs"),
        (["--freeze", "--pretrained", "a.pkl", "--agc", "0.01"], "which --agc leaves out"),
        (["--teacher", "best.pkl"], "--teacher best.pkl is not ARCH:FILE"),
        (["--teacher", "RepVGGA0:none.pkl"], "cannot read none.pkl"),
        (["--pretrained", "none.pkl"], "cannot read none.pkl: No such file"),
        (["--resume", "none.pkl"], "cannot read none.pkl: No such file"),
        (["--dtr", "5GB"], "--dtr needs a GPU: on a CPU it frees nothing"),
        (["--frobnicate"], "unrecognized arguments: --frobnicate"),
        (["--save", "/proc/nowhere"], "cannot write to the output folder"),
    ],
)
def test_bad_flags_are_one_sentence(command, tmp_path, flags, sentence):
    status, out, err = command("train", "--save", tmp_path, *flags)
    assert status == 2
    assert err.startswith("pytest: error: ") or ": error: " in err
    assert len(err.splitlines()) == 1 and sentence in err
    assert not list(tmp_path.rglob("*.pkl"))


def test_a_checkpoint_that_is_not_one_is_a_sentence(command, tmp_path):
    path = tmp_path / "cut.pkl"
    path.write_bytes(b"\x80\x04\x95")
    for name, flag in (("test", "--model"), ("verify", "--model"), ("train", "--resume")):
        status, _, err = command(name, flag, path)
        assert status == 2 and "is empty, truncated or not a checkpoint" in err
    exported = tmp_path / "network.pkl"  # the content tells what it is
    graph = onnx.helper.make_graph([], "network", [], [])
    exported.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    status, _, err = command("verify", "--model", exported)
    assert status == 2 and "is an exported network, not a checkpoint" in err


def test_help_is_a_manual(command):
    for name in ("train", "test", "verify", "benchmark"):
        status, out, _ = command(name, "--help")
        assert status == 0 and "examples:" in out
