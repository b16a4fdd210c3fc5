"""train.py --amp on a CPU: bfloat16 in compiled programs, or a sentence why not."""

import numpy as np
import pytest

from training import run_folder
from weights import checkpoint

libraries = pytest.importorskip("models.cpu.fast.libraries")
FLAGS = ["--arch", "RepGhost050", "--size", "32", "--batch-size", "4", "--workers", "0",
         "--lr", "1", "--min-lr", str(4 / 256), "--warmup-epochs", "0"]  # fmt: skip


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


def test_training_in_bfloat16_is_another_one_and_is_resumed_exactly(train):
    if not libraries.has_bfloat16():
        pytest.skip("the processor has no bfloat16")
    out, rounded = train("amp", "--amp", "--epochs", "2")
    assert "--amp" not in out
    assert not same(rounded, train("exact", "--epochs", "2")[1])
    train("stopped", "--amp", "--epochs", "1")
    resumed = train("stopped", "--amp", "--epochs", "2", "--extend", "--resume", "auto")[1]
    assert same(resumed, rounded)


@pytest.mark.parametrize(
    "variable, has, reason",
    [
        ("fast", False, "this processor has no instructions for bfloat16 (avx512_bf16)"),
        ("matmul", True, "REPARAM_CPU=matmul computes in float32"),
    ],
)
def test_what_computes_in_float32_is_said(train, monkeypatch, variable, has, reason):
    monkeypatch.setenv("REPARAM_CPU", variable)
    monkeypatch.setattr(libraries, "has_bfloat16", lambda: has)
    out, weights = train("amp", "--amp", "--epochs", "1")
    assert out.count(f"--amp changes nothing: {reason}") == 1
    out, exact = train("exact", "--epochs", "1")
    assert same(weights, exact) and "--amp" not in out
