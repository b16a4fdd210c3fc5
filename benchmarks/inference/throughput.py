"""Measure the frames per second of several parallel streams."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .candidates import Network, candidates
from .turns import Settings, measure


def throughput(
    network: Network,
    size: int,
    streams: list[int],
    settings: Settings,
    int8: str | None = None,
    after_turn: Callable[[], object] = lambda: None,
) -> list[dict]:
    """Return a row per variant and number of parallel streams of single frames, a thread each.

    The figures are those of boards' benchmarks: the mean time of a frame, and frames per second.
    MegEngine itself supports one stream per process and is left out.
    """
    rows = []
    with candidates(network, size, int8) as available:
        selected = settings.select([one for one in available if one.runtime != "megengine"])
        several = [replace(one, streams=count) for one in selected for count in streams]
        for one in measure(several, 1, 1, size, settings, after_turn):
            speeds = [len(turn["latencies"]) / turn["elapsed"] for turn in one.turns]
            rows.append(
                {
                    "arch": network.arch,
                    "size": size,
                    "parameters": one.candidate.profile.parameters,
                    "variant": one.candidate.variant,
                    "streams": one.candidate.streams,
                    "mean_ms": float(one.latencies.mean()) * 1e3,
                    "latency_ms": float(np.median(one.latencies)) * 1e3,
                    "frames_per_second": statistics.median(speeds),
                    "slowest": min(speeds),
                    "fastest": max(speeds),
                    "peak_mb": one.peak_memory,
                    "frames": len(one.latencies),
                }
            )
    return rows
