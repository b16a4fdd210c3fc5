"""train.py --amp on a CPU: bfloat16 in compiled programs, or a line that says why not."""

import pickle

import models
from models import cpu
from models.cpu import fast

import megengine as mge
import numpy as np
import pytest
from megengine.amp import GradScaler

from training import mixed_precision, run_folder
from training.distributed.process_group import Workers
from training.settings import Settings
from training.trainer_inputs import Network
from training.update import Update
from weights import checkpoint

FLAGS = ["--arch", "RepGhost050", "--size", "32", "--batch-size", "4", "--workers", "0",
         "--lr", "1", "--min-lr", str(4 / 256), "--warmup-epochs", "0"]  # fmt: skip
NO_PROGRAM = "--amp has no effect on this network: it is for what compiled programs compute"


@pytest.fixture
def train(command, image_folder, tmp_path, monkeypatch):
    """A function that runs train.py on few images: (output, weights)."""
    monkeypatch.setattr(run_folder, "_curves", lambda _: b"")  # drawing takes longest
    data = image_folder(tmp_path / "data", train=4, val=2)

    def run(tag, *flags):
        status, out, err = command(
            "train", "--data", data, "--save", tmp_path, "--tag", tag, *FLAGS, *flags
        )
        assert status == 0, err
        return out, checkpoint.read(tmp_path / "RepGhost050" / tag / "latest.pkl").state_dict

    return run


def same(weights, others):
    return all(np.array_equal(weights[name], others[name]) for name in weights)


@pytest.fixture
def needs_bfloat16():
    if not cpu.has_bfloat16():
        pytest.skip("no programs in bfloat16 can be run here")


@pytest.mark.parametrize("name", ["sgd", "muon"])
def test_training_in_bfloat16_is_another_one_and_is_resumed_exactly(train, needs_bfloat16, name):
    flags = "--optimizer", name
    out, rounded = train("amp", "--amp", *flags, "--epochs", "2")
    assert "--amp" not in out
    assert not same(rounded, train("exact", *flags, "--epochs", "2")[1])
    train("stopped", "--amp", *flags, "--epochs", "1")
    again = "--epochs", "2", "--extend", "--resume", "auto"
    assert same(train("stopped", "--amp", *flags, *again)[1], rounded)


def test_muons_products_are_rounded(train, needs_bfloat16, monkeypatch):
    from models.cpu.fast import newton_schulz

    rounded, emit = [], newton_schulz._emit_rounded_steps
    monkeypatch.setattr(
        newton_schulz, "_emit_rounded_steps", lambda *a: rounded.append(a) or emit(*a)
    )
    train("exact", "--optimizer", "muon", "--epochs", "1")
    assert not rounded
    train("amp", "--amp", "--optimizer", "muon", "--epochs", "1")
    assert rounded


def test_a_processor_without_bfloat16_is_said(train, monkeypatch):
    monkeypatch.setattr(mixed_precision, "processor_has", lambda word: False)
    if fast.available():
        monkeypatch.setattr(fast.libraries, "has_bfloat16", lambda: False)
    out, weights = train("amp", "--amp", "--epochs", "1")
    line = "--amp has no effect: this processor has no instructions for bfloat16 (avx512_bf16)"
    assert out.count("--amp") == out.count(line) == 1
    out, exact = train("exact", "--epochs", "1")
    assert same(weights, exact) and "--amp" not in out


@pytest.mark.parametrize("flags", [(), ("--low-memory",)])
def test_a_network_without_a_program_is_said(train, monkeypatch, flags):
    monkeypatch.setattr(mixed_precision, "processor_has", lambda word: True)
    if not flags:
        monkeypatch.setenv("REPARAM_CPU", "matmul")
    out, weights = train("amp", "--amp", "--epochs", "1", *flags)
    assert out.count("--amp") == out.count(NO_PROGRAM) == 1
    assert same(weights, train("exact", "--epochs", "1", *flags)[1])


def test_blocks_that_are_computed_one_by_one_are_said(needs_bfloat16):
    model = models.create("FastViTT8", 10)
    model.train()
    assert mixed_precision.note(True, model, 64, [0.0, 0.0]) is None
    assert mixed_precision.note(True, model, 64, [0.0, 0.1]).startswith(NO_PROGRAM)


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_gradients_that_overflow_change_nothing(tiny, name):
    model = tiny()
    settings = Settings(1, 8, 0.1, optimizer=name, clip_norm=1.0, ema=0.5)
    update = Update(Network(model), settings, Workers())
    update.scaler = GradScaler()  # which is used on a GPU only
    states = update.optimizer.state_dict, update.average.state_dict, model.state_dict
    before = [pickle.dumps(state()) for state in states]

    def apply(value):
        for parameter in model.parameters():
            parameter.grad = mge.Tensor(np.full(parameter.shape, value, np.float32))
        update.apply(step=0, rate=0.1, weight_decay=0.0)
        return [pickle.dumps(state()) for state in states]

    assert apply(np.inf) == before
    assert all(a != b for a, b in zip(apply(1.0), before, strict=True))
