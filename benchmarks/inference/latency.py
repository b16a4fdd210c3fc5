"""Measure latency, images/s, memory and GFLOP/s of a network's forms and runtimes."""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from .candidates import Candidate, Network, candidates
from .turns import Measured, Settings, measure

_BRIEF = Settings(rounds=5, seconds=0.1)
_SIDE = 1024  # of the square matrices whose product is the reference for GFLOP/s


def inference(
    network: Network,
    size: int,
    batches: list[int],
    threads: list[int],
    settings: Settings,
    int8: str | None = None,
    after_turn: Callable[[], object] = lambda: None,
) -> list[dict]:
    """Return a row per variant, batch size and number of threads, with times in milliseconds.

    "peak_share" is relative to onnxruntime's product of float32 matrices with as many threads, in
    its fastest pass among the turns of the networks.
    """
    rows = []
    with candidates(network, size, int8) as available:
        selected = settings.select(available)
        product = Candidate("matrix product", "matrix_product", str(_SIDE))
        for count, batch in itertools.product(threads, batches):
            *measured, peak = measure(
                [*selected, product], count, batch, size, settings, after_turn
            )
            gflops = 2 * _SIDE**3 / peak.latencies.min() / 1e9
            point = {"arch": network.arch, "size": size, "batch": batch, "threads": count}
            rows += [{**point, **row} for row in _inference_rows(measured, batch, gflops)]
    return rows


def of_files(
    models: Mapping[str, onnx.ModelProto],
    size: int,
    runtimes: Sequence[str] = ("onnxruntime",),
    settings: Settings = _BRIEF,
) -> dict[tuple[str, str], float]:
    """Return (name, runtime) -> median latency in ms of an image on one thread, all in turns.

    Args:
        models: name -> ONNX network for images [N, C, size, size], the same C for all.
        runtimes: keys of `runtimes.LOAD`.
    """
    with tempfile.TemporaryDirectory() as folder:
        keys, available = [], []
        for number, (name, model) in enumerate(models.items()):
            path = Path(folder, f"{number}.onnx")
            path.write_bytes(model.SerializeToString())
            for runtime in runtimes:
                keys.append((name, runtime))
                available.append(Candidate(f"{name}, {runtime}", runtime, str(path)))
        images = next(iter(models.values())).graph.input[0].type.tensor_type
        channels = images.shape.dim[1].dim_value
        measured = measure(available, 1, 1, size, settings, channels=channels)
    medians = [1e3 * float(np.median(one.latencies)) for one in measured]
    return dict(zip(keys, medians, strict=True))


def _inference_rows(measured: list[Measured], batch: int, peak_gflops: float) -> list[dict]:
    first = np.median(measured[0].latencies)
    rows = []
    for variant in measured:
        latencies, profile = variant.latencies, variant.candidate.profile
        median, p90, p99 = (float(np.percentile(latencies, p)) for p in (50, 90, 99))
        speeds = [batch / statistics.median(turn["latencies"]) for turn in variant.turns]
        gflops = 2 * profile.macs * batch / median / 1e9
        rows.append(
            {
                "variant": variant.candidate.variant,
                "latency_ms": median * 1e3,
                "p90_ms": p90 * 1e3,
                "p99_ms": p99 * 1e3,
                "images_per_second": batch / median,
                "slowest": min(speeds),  # median of the slowest turn
                "fastest": max(speeds),
                "times_first": float(first / median),
                "peak_mb": variant.peak_memory,
                "parameters": profile.parameters,
                "multiply_adds": profile.macs,
                "gflops": gflops,
                "peak_gflops": float(peak_gflops),
                "peak_share": float(gflops / peak_gflops),
                "passes": len(latencies),
            }
        )
    return rows
