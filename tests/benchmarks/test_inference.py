"""benchmark.py infer and throughput: what is compared and said, not how fast it is."""

import csv
import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from threading import Barrier

from models import Profile

import cv2
import numpy as np
import psutil
import pytest

from benchmarks.inference import candidates, latency, runtimes, throughput, turns, worker
from data.transforms import Preprocessing
from deployment import onnx_export
from training import memory
from utils import UserError
from weights import checkpoint

QUICK = ("--size", 32, "--rounds", 2, "--seconds", 0.01)


@pytest.fixture(autouse=True)
def nothing_else_installed(monkeypatch):
    """As if there were neither OpenVINO nor PyTorch, wherever the tests run."""
    monkeypatch.setattr(candidates, "find_spec", lambda name: None)


@pytest.fixture(scope="module")
def network():
    return candidates.load("RepGhost050", None)


@pytest.fixture(scope="module")
def float_onnx(network, tmp_path_factory):
    """It takes two images of 32 px at once, and nothing else."""
    path = tmp_path_factory.mktemp("onnx") / "a.onnx"
    onnx_export.export_onnx(
        network.deploy, path, Preprocessing(), size=32, batch=2, metadata={"arch": network.arch}
    )
    return path


@pytest.fixture(scope="module")
def int8_onnx(float_onnx):
    """Quantized by onnxruntime, calibrated on noise."""
    from onnxruntime import quantization

    class Noise(quantization.CalibrationDataReader):
        def __init__(self):
            images = np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)
            self.batches = iter([{"input": images}])

        def get_next(self):
            return next(self.batches, None)

    path = float_onnx.with_name("int8.onnx")
    quantization.quantize_static(float_onnx, path, Noise(), per_channel=True)
    return path


@pytest.mark.slow
def test_inference(command, int8_onnx, tmp_path, monkeypatch):
    running = []  # threads in each process, asked when its memory is

    def peak_memory(process):
        running.append(psutil.Process(process).num_threads())
        return real(process)

    real = memory.peak_memory
    monkeypatch.setattr(memory, "peak_memory", peak_memory)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")  # NumPy's are not the runtime's
    table, chart = tmp_path / "new" / "speed.csv", tmp_path / "speed.png"
    status, out, err = command(
        "benchmark", "infer", "--arch", "repghost_050", *QUICK, "--batch", 2, "--threads", 1, 2,
        "--int8", int8_onnx, "--json", "--csv", table, "--chart", chart,
    )  # fmt: skip
    assert status == 0, err
    rows = json.loads(out)
    assert err.splitlines()[:2] == [
        "RepGhost050: OpenVINO left out: openvino is not installed",
        "RepGhost050: PyTorch left out: torch and timm are not installed",
    ]
    variants = [
        "train form, MegEngine",
        "deploy form, MegEngine",
        ".mge, MegEngine Lite",
        "ONNX, onnxruntime",
        "int8, onnxruntime",
        "int8, precise",
    ]
    points = [(row["batch"], row["threads"], row["variant"]) for row in rows]
    assert points == [(2, threads, variant) for threads in (1, 2) for variant in variants]
    for row in rows:
        assert row["images_per_second"] * row["latency_ms"] == pytest.approx(1000 * row["batch"])
        work = 2 * row["multiply_adds"] * row["images_per_second"] / 1e9
        assert row["gflops"] == pytest.approx(work)
        assert row["peak_share"] == pytest.approx(work / row["peak_gflops"])
        assert row["latency_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert row["slowest"] <= row["fastest"] and row["passes"] >= 6
        assert 50 < row["peak_mb"] < 2000
    assert len({row["peak_mb"] for row in rows}) > len(variants)  # each process has its own
    assert len(running) == 2 * (len(variants) + 1)  # and the matrix product
    for one, two in zip(running[:7], running[7:], strict=True):
        assert two > one
    forms = {row["variant"].split(",")[0]: row["parameters"] for row in rows}
    assert forms["train form"] == 2_313_968 and forms["deploy form"] == 2_302_956
    assert forms[".mge"] == forms["ONNX"] == forms["int8"] == forms["deploy form"]
    with open(table) as file:
        read = list(csv.DictReader(file))
    assert read == [{name: str(value) for name, value in row.items()} for row in rows]
    assert min(cv2.imread(str(chart)).shape[:2]) > 300


@pytest.mark.slow
def test_throughput(command):
    status, out, err = command(
        "benchmark", "throughput", "--arch", "RepGhost050", *QUICK, "--streams", 1, 3, "--json"
    )
    assert status == 0, err
    rows = json.loads(out)
    points = [(row["variant"], row["streams"]) for row in rows]
    assert points == [(v, n) for v in (".mge, MegEngine Lite", "ONNX, onnxruntime") for n in (1, 3)]
    for row in rows:
        assert row["parameters"] == 2_302_956
        assert row["frames"] >= 2 * 3 * row["streams"]
        assert row["slowest"] <= row["frames_per_second"] <= row["fastest"]


def known(variant, turns_, macs, streams=1):
    """A candidate with its passes in ms: (their times, how long it all took) of each turn."""
    one = candidates.Candidate(variant, "", "", Profile(5, macs), streams)
    answers = [{"latencies": [ms / 1e3 for ms in times], "elapsed": elapsed / 1e3}
               for times, elapsed in turns_]  # fmt: skip
    return turns.Measured(one, answers, peak_memory=123.0)


def test_figures_of_inference(monkeypatch, network):
    """Worked out by hand from times that are known, of batches of 8."""
    train = known("train form", [([100, 200, 900], 0), ([300, 400, 500], 0)], 800_000_000)
    deploy = known("deploy form", [([70, 70, 70], 0), ([70, 70, 70], 0)], 700_000_000)
    product = known("matrix product", [([4, 2, 3], 0)], 0)
    monkeypatch.setattr(latency, "candidates", lambda *_: nullcontext([]))
    monkeypatch.setattr(latency, "measure", lambda *_: [train, deploy, product])
    first, second = latency.inference(network, 32, [8], [1], turns.Settings(2, 0))
    expected = {
        "latency_ms": 350, "p90_ms": 700, "p99_ms": 880, "images_per_second": 8 / 0.35,
        "slowest": 20, "fastest": 40, "times_first": 1, "peak_mb": 123, "gflops": 12.8 / 0.35,
        "peak_gflops": 2 * 1.024**3 / 0.002, "peak_share": 12.8 / 0.35 * 0.002 / 2 / 1.024**3,
        "passes": 6,
    }  # fmt: skip
    assert {name: first[name] for name in expected} == pytest.approx(expected)
    assert second["times_first"] == pytest.approx(5) and second["gflops"] == pytest.approx(160)


def test_figures_of_throughput(monkeypatch, network):
    """Two streams: three turns of 10, 5 and 15 frames a second."""
    times = [([100, 100, 400] * 2, 600), ([100, 300, 800] * 2, 1200), ([100, 100, 200] * 2, 400)]
    measured = known(".mge", times, 1, streams=2)
    monkeypatch.setattr(throughput, "candidates", lambda *_: nullcontext([]))
    monkeypatch.setattr(throughput, "measure", lambda *_: [measured])
    (row,) = throughput.throughput(network, 32, [2], turns.Settings(3, 0))
    expected = {
        "streams": 2, "mean_ms": 2200 / 9, "latency_ms": 100, "frames_per_second": 10,
        "slowest": 5, "fastest": 15, "peak_mb": 123, "frames": 18,
    }  # fmt: skip
    assert {name: row[name] for name in expected} == pytest.approx(expected)


def test_streams_run_at_once():
    """Each pass waits for that of the other stream; the first of a turn does not count."""
    together, calls = Barrier(2), []

    def run(images):
        calls.append(images)
        together.wait(timeout=60)

    with ThreadPoolExecutor(2) as pool:
        answer = worker.turn([run, run], None, 1e-9, pool)
    assert len(answer["latencies"]) == len(calls) - 2 == 6
    first, second = np.reshape(answer["latencies"], (2, 3)).sum(1)
    assert max(first, second) <= answer["elapsed"] < first + second


def test_every_runtime_computes_the_network(network, rng):
    """The same logits: it is the same work that is timed."""
    images = rng.standard_normal((2, 3, 32, 32)).astype(np.float32)
    with candidates.candidates(network, 32) as available:
        for one in available:
            one.prepare()
        assert [checkpoint.read(one.source).form for one in available[:2]] == ["train", "deploy"]
        logits = [runtimes.LOAD[one.runtime](one.source, 1, 1)[0](images) for one in available]
    assert len(logits) == 4
    for one in logits[1:]:
        np.testing.assert_allclose(one, logits[0], atol=1e-5 * np.abs(logits[0]).max())


def test_only_the_files_of_measured_candidates_are_written(network):
    settings = turns.Settings(1, 0.01, ("deploy form, MegEngine",))
    with candidates.candidates(network, 32) as available:
        turns.measure(settings.select(available), 1, 1, 32, settings)
        written = [one.variant for one in available if os.path.exists(one.source)]
    assert written == ["deploy form, MegEngine"]


@pytest.mark.slow
def test_a_file_in_deploy_form(command, network, tmp_path):
    path = tmp_path / "deploy.pkl"
    checkpoint.save(checkpoint.of_model(network.deploy, Preprocessing()), path)
    status, out, err = command(
        "benchmark", "infer", "--model", path, *QUICK, "--batch", 1, "--threads", 1
    )
    assert status == 0
    assert "train form left out: the checkpoint has the deploy form only" in err
    assert out.splitlines()[2].split()[:5] == ["RepGhost050", "32", "1", "1", "deploy"]
    commands = [" ".join(child.cmdline()) for child in psutil.Process().children()]
    assert not any("benchmarks.inference.worker" in one for one in commands)


def test_a_runtime_that_fails_is_named():
    missing = candidates.Candidate("ONNX, onnxruntime", "onnxruntime", "nowhere.onnx")
    sentence = r"ONNX, onnxruntime \(nowhere.onnx\) ended with exit status 1: .*File doesn't exist"
    with pytest.raises(UserError, match=sentence):
        turns.measure([missing], 1, 1, 32, turns.Settings(1, 0.01))


def test_a_runtime_that_stalls_is_named(monkeypatch):
    """A network that is given no time stands for one that takes for ever."""
    monkeypatch.setattr("benchmarks.turns.TIME_LIMIT", 0.01)
    product = candidates.Candidate("matrix product", "matrix_product", "64")
    with pytest.raises(UserError, match=r"matrix product \(64\) gave no answer within 0\.01 s"):
        turns.measure([product], 1, 1, 32, turns.Settings(1, 0.01))


def test_errors_are_one_sentence(command, network, float_onnx, int8_onnx, tmp_path):
    train = tmp_path / "train.pkl"
    checkpoint.save(checkpoint.of_model(network.train, Preprocessing()), train)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no network")
    ghost = ("--arch", "RepGhost050")
    cases = [
        (("--arch", "RepVGX*"), "unknown architecture 'RepVGX*'"),
        (("--arch", "RepVGGA*", "--model", train), "--model is of one architecture"),
        (("--arch", "RepVGGA0", "--model", train), "RepGhost050, but RepVGGA0 was expected"),
        (("--model", tmp_path / "none.pkl"), "No such file"),
        ((*ghost, "--int8", float_onnx), "is not quantized"),
        ((*ghost, "--int8", broken), "is no ONNX file"),
        ((*ghost, "--int8", tmp_path / "none.onnx"), "No such file"),
        (("--arch", "RepVGGA0", "--int8", int8_onnx), "give --arch RepGhost050"),
        ((*ghost, "--int8", int8_onnx, "--size", 64), "give another --batch or --size"),
        (("--threads", 0), "'0' is not a whole number of at least 1"),
        (("--seconds", 0), "'0' is not a number above 0"),
    ]
    for arguments, sentence in cases:
        status, out, err = command("benchmark", "infer", *arguments)
        assert (status, out) == (2, ""), arguments
        last = err.splitlines()[-1]
        assert sentence in last and "Traceback" not in err
