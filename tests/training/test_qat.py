"""Quantization-aware training: rounding as onnxruntime's, the exported network, the training."""

import os
import signal

import models
from models import equivalence

import megengine as mge
import numpy as np
import onnx
import onnxruntime
import pytest

from data import datasets
from data.augment import Augmentation
from data.datasets import Dataset
from data.evaluation import evaluate
from data.loader import Loader
from data.transforms import Preprocessing
from deployment.int8 import dialects, float_network, graph, qdq, weights
from deployment.onnx_graph import to_onnx
from tests.deployment.networks import SMALL
from training import qat
from training.distributed.process_group import Workers
from training.loop import Trainer
from training.run_folder import RunFolder
from training.settings import Settings
from training.signals import Interrupted
from training.trainer_inputs import Data, Network, Run
from utils import UserError
from weights import checkpoint, loading

PREPROCESSING = Preprocessing(size=32, crop_ratio=1.0)


def run_onnx(model, images):
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def sqnr(found, expected):
    """Of float arrays, in dB."""
    return 10 * np.log10((expected**2).sum() / ((found - expected) ** 2).sum())


# ---------------------------------------------------------------- rounding


@pytest.mark.parametrize("low, high", [(0.0, 63.75), (-31.75, 32.0), (-1.3, 0.7), (-2.0, -1.0)])
def test_activations_are_rounded_as_by_onnxruntime(low, high):
    """With scale 1/4 every second number is a tie."""
    x = np.concatenate([np.arange(-400, 400) / 8, np.linspace(-2, 2, 999)]).astype(np.float32)
    scale, zero = dialects.UINT8.scale_and_zero(low, high)
    value, node = onnx.helper.make_tensor_value_info, onnx.helper.make_node
    constants = {"scale": scale, "zero": zero}
    graph = onnx.helper.make_graph(
        [
            node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
        ],
        "rounding",
        [value("x", onnx.TensorProto.FLOAT, [len(x)])],
        [value("y", onnx.TensorProto.FLOAT, [len(x)])],
        [onnx.numpy_helper.from_array(np.array(c), name) for name, c in constants.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 13)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    found = qat.fake_quantize(mge.Tensor(x), low, high).numpy()
    np.testing.assert_array_equal(found, run_onnx(model, x))


def test_gradients_pass_within_the_range_alone():
    x = mge.Tensor(np.array([-0.2, 0.0, 0.3, 1.0, 1.1], np.float32))
    with mge.autodiff.GradManager().attach(x) as manager:
        manager.backward(qat.fake_quantize(x, 0.0, 1.0).sum())
    np.testing.assert_allclose(x.grad.numpy()[[0, 2, 4]], [0, 1, 0], atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (2, 3, 2, 3, 3), (5, 7)])
def test_weights_are_rounded_as_in_the_int8_network(shape, rng):
    weight = rng.standard_normal(shape).astype(np.float32)
    flat = weight.reshape(-1, *shape[-3:]) if len(shape) > 2 else weight
    expected = weights.quantize(flat)
    found, scale = map(mge.Tensor.numpy, qat.fake_quantize_weights(mge.Tensor(weight)))
    np.testing.assert_allclose(found, expected.weights.reshape(shape), rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(scale, expected.scale)


def test_a_bias_is_rounded_and_passes_gradients_on():
    bias = mge.Tensor(np.array([0.26, -0.26, 1.0], np.float32).reshape(1, 3, 1, 1))
    with mge.autodiff.GradManager().attach(bias) as manager:
        rounded = qat.fake_quantize_bias(bias, mge.Tensor(np.float32([0.5, 0.5, 0.3])))
        manager.backward((rounded * 2.0).sum())
    np.testing.assert_allclose(rounded.numpy().ravel(), [0.5, -0.5, 0.9], rtol=1e-6)
    np.testing.assert_array_equal(bias.grad.numpy().ravel(), [2, 2, 2])


# ---------------------------------------------------------------- the network


@pytest.fixture
def network(tiny):
    """A function that makes a network of a kind of `tiny`, or of an architecture, with random
    weights, and its int8 form calibrated on random images."""

    def make(kind):
        rng = np.random.default_rng(0)
        images = rng.standard_normal((8, 3, 32, 32)).astype(np.float32)
        model = models.create(kind, 10) if kind in models.list_models() else tiny(kind)
        equivalence.randomize(model, images)
        quantized = qat.FakeQuantized(model)
        quantized.calibrate([images], Workers())
        quantized.eval()
        return model, quantized, images

    return make


def test_steps_without_images_change_no_range(network):
    _, quantized, _ = network("dense")
    before = dict(quantized.ranges)
    quantized.observe(Workers())
    assert quantized.ranges == before
    with pytest.raises(UserError, match="none of the first images could be read"):
        quantized.calibrate([], Workers())


@pytest.mark.parametrize("kind", SMALL)
def test_every_runtime_finds_the_ranges_that_it_needs(kind):
    model = SMALL[kind]()
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    equivalence.randomize(model, images)
    quantized = qat.FakeQuantized(model)
    quantized.calibrate([images], Workers())
    deployed = models.to_deploy(model)
    deployed.eval()
    onnx = to_onnx(deployed, (32, 32), 17, "batch", "input", "logits")
    for dialect in dialects.DIALECTS.values():
        scheme = dialects.Scheme(dialect=dialect)
        found = qdq.with_flattened(onnx, quantized.ranges)
        assert found.keys() >= {*qdq.activations(onnx, scheme)}
        with_ranges = float_network.with_trained_ranges("file", onnx, quantized.ranges, scheme)
        assert graph.logits(with_ranges, images).shape == (2, 10)


@pytest.mark.parametrize(
    "kind, decibels",
    # what is rounded the other way in one of the two grows over RepViT's many additions
    [
        ("dense", 60),
        ("qa, groups, se", 60),
        ("plus", 60),
        pytest.param("RepGhost050", 40, marks=pytest.mark.slow),
        pytest.param("RepViTM0_6", 24, marks=pytest.mark.slow),
        pytest.param("FastViTT8", 24, marks=pytest.mark.slow),
    ],
)
def test_the_exported_network_gives_the_same_logits(network, kind, decibels):
    model, quantized, images = network(kind)
    deployed = models.to_deploy(model)
    deployed.eval()
    float_onnx = to_onnx(deployed, (32, 32), 13, "batch", "input", "logits")
    found = run_onnx(qdq.to_qdq(float_onnx, quantized.ranges), images)
    expected = quantized(mge.Tensor(images)).numpy()
    float_logits = deployed(mge.Tensor(images)).numpy()
    # in most images: a sum in another order may round a single number the other way
    assert np.median([sqnr(*pair) for pair in zip(found, expected, strict=True)]) > decibels
    assert sqnr(found, expected) > min(decibels, 45)
    assert sqnr(expected, float_logits) < 60  # it does round


def test_without_ranges_and_rounding_it_is_the_float_network(network, monkeypatch):
    model, quantized, images = network("groups")
    quantized.ranges = {}
    monkeypatch.setattr(qat, "fake_quantize_weights", lambda weight: (weight, weight))
    quantized.eval()
    deployed = models.to_deploy(model)
    deployed.eval()
    expected = deployed(mge.Tensor(images)).numpy()
    found = quantized(mge.Tensor(images)).numpy()
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_ranges_move_towards_what_is_seen(network):
    _, quantized, images = network("dense")
    low, high = quantized.ranges["input"]
    assert (low, high) == pytest.approx((images.min(), images.max()))
    quantized.train()
    for factor in (1, 3):  # the parts of one step
        quantized(mge.Tensor(images * np.float32(factor)))
    quantized.observe(Workers())
    assert quantized.ranges["input"] == pytest.approx((1.01 * low, 1.01 * high))


# ---------------------------------------------------------------- training


@pytest.mark.slow
def test_it_repairs_what_rounding_breaks(tiny, tmp_path, monkeypatch):
    """On the digits, with 3 bits instead of 8, which break this network."""
    train_set, val_set = datasets.digits()
    loaders = [Loader(data, PREPROCESSING, 64, workers=0) for data in (train_set, val_set)]
    model = tiny()
    settings = Settings(4, 64, 0.1, warmup_epochs=1)
    Trainer(Network(model), Data(*loaders), settings, Run(RunFolder(tmp_path / "float"))).fit()
    plain = evaluate(model, loaders[1].evaluation())
    monkeypatch.setattr(dialects, "UINT8", dialects.Grid(np.uint8, 0, 7, symmetric=False))
    monkeypatch.setattr(weights, "LARGEST", 3)
    quantized = qat.FakeQuantized(model)
    folder = RunFolder(tmp_path / "int3")
    settings = Settings(1, 64, 0.01, qat=True)
    trainer = Trainer(Network(model, quantized), Data(*loaders), settings, Run(folder))
    trainer.start()
    before = evaluate(quantized, loaders[1].evaluation())
    trainer.fit()
    after = evaluate(quantized, loaders[1].evaluation())
    assert after.top1 == trainer.history[-1]["val_top1"]
    assert before.top1 < plain.top1 - 10 and after.top1 > before.top1 + 5


@pytest.fixture
def train(tiny, tmp_path):
    """A function that trains a tiny network in int8 form on random images, or goes on."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, 24).astype(np.int32)
    data = Dataset("noise", images, labels, list("0123456789"), Augmentation(affine=True))

    def run(name, resume=False):
        folder, model = RunFolder(tmp_path / name), tiny("qa")
        loaders = [Loader(data, PREPROCESSING, 12, workers=0) for _ in range(2)]
        settings = Settings(2, 12, 0.01, ema=0.9, accumulate=2, qat=True)
        quantized = qat.FakeQuantized(model)
        trainer = Trainer(Network(model, quantized), Data(*loaders), settings, Run(folder))
        if resume:
            found = checkpoint.read(folder.latest)
            loading.load_state(model, found.state_dict, folder.latest)
            trainer.resume(found)
        trainer.fit()
        return checkpoint.read(folder.latest)

    return run


@pytest.mark.slow
def test_a_run_that_was_stopped_and_resumed_ends_with_the_same_bits(train, monkeypatch, tiny):
    straight = train("straight")
    assert straight.form == "train" and straight.activation_ranges["input"][0] < 0
    before = tiny("qa").state_dict()
    for name, value in straight.state_dict.items():  # the branches learn, and no statistics
        assert np.array_equal(value, before[name]) == ("running" in name), name
    steps = []

    def stop(self, workers):
        observe(self, workers)
        steps.append(self)
        if len(steps) == 4:  # calibrated, and after three steps of four
            os.kill(os.getpid(), signal.SIGTERM)

    observe = qat.FakeQuantized.observe
    monkeypatch.setattr(qat.FakeQuantized, "observe", stop)
    with pytest.raises(Interrupted):
        train("stopped")
    resumed = train("stopped", resume=True)
    assert len(steps) == 5
    assert resumed.activation_ranges == straight.activation_ranges
    assert resumed.training["history"] == straight.training["history"]
    for name, value in straight.state_dict.items():
        assert np.array_equal(value, resumed.state_dict[name]), name


@pytest.mark.slow
def test_the_command_starts_from_weights_at_a_low_rate(command, tmp_path, image_folder):
    data = image_folder(train=4, val=2)
    common = ["--data", data, "--size", "32", "--batch-size", "8", "--tag", "t", "--workers", "0"]
    status, _, err = command("train", "--qat", *common)
    assert status == 2 and "--qat fine-tunes a trained network" in err
    model = models.create("RepVGGA0-qa", 3)
    path = tmp_path / "weights.pkl"
    checkpoint.save(checkpoint.of_model(model, PREPROCESSING), path)
    flags = ["--qat", "--arch", "repvgg_a0_qa", "--pretrained", path, "--save", tmp_path]
    status, _, err = command("train", *flags, *common, "--precise-bn", "8")
    assert status == 2 and "leave --freeze, --precise-bn" in err
    status, out, err = command("train", *flags, *common)
    assert status == 0, err
    assert "3 epochs" in out and "(--lr 0.001 x 8/256)" in out
    assert len(checkpoint.read(tmp_path / "RepVGGA0-qa" / "t" / "best.pkl").activation_ranges) > 20
