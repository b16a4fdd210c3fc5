"""Processes that take turns, each with one runtime."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from benchmarks.turns import Process
from utils import UserError

from .candidates import Candidate
from .runtimes import process_environment


@dataclass(frozen=True)
class Settings:
    """What to measure and how long.

    Attributes:
        rounds: number of turns of each candidate.
        seconds: length of a turn.
        variants: shell patterns of the variants to measure.
    """

    rounds: int
    seconds: float
    variants: tuple[str, ...] = ("*",)

    def select(self, candidates: list[Candidate]) -> list[Candidate]:
        """Return the candidates to measure. Raises UserError when no pattern matches one."""
        selected = [
            candidate
            for candidate in candidates
            if any(fnmatchcase(candidate.variant, pattern) for pattern in self.variants)
        ]
        if candidates and not selected:
            names = ", ".join(repr(candidate.variant) for candidate in candidates)
            raise UserError(
                f"--variants {' '.join(self.variants)} matches none of the variants {names}; "
                "give one of them, or a pattern"
            )
        return selected


def _process(candidate: Candidate, threads: int, batch: int, channels: int, size: int) -> Process:
    """Start a process that runs benchmarks.inference.worker."""
    numbers = map(str, (threads, candidate.streams, batch, channels, size))
    module = "benchmarks.inference.worker"
    return Process(
        f"{candidate.variant} ({candidate.source})",
        [module, candidate.runtime, candidate.source, *numbers],
        process_environment(threads),
        "leave it out by --variants or repair its runtime",
    )


@dataclass
class Measured:
    """Measurements of a candidate: an answer per turn, and its process's peak memory in MB."""

    candidate: Candidate
    turns: list[dict]
    peak_memory: float = 0.0

    @property
    def latencies(self) -> np.ndarray:
        """Seconds of each pass, float64 [passes]."""
        return np.concatenate([turn["latencies"] for turn in self.turns])


def measure(
    candidates: list[Candidate],
    threads: int,
    batch: int,
    size: int,
    settings: Settings,
    after_turn: Callable[[], object] = lambda: None,
    channels: int = 3,
) -> list[Measured]:
    """Prepare the candidates and measure them in turns, each with `threads` threads per stream.

    `after_turn` is called after every turn. Raises UserError when a process fails.
    """
    for candidate in candidates:
        candidate.prepare()
    measured = [Measured(candidate, []) for candidate in candidates]
    with ExitStack() as stack:
        workers = [
            stack.enter_context(_process(candidate, threads, batch, channels, size))
            for candidate in candidates
        ]
        for worker in workers:
            worker.answer()  # it has warmed up
        for _ in range(settings.rounds):
            for worker, candidate in zip(workers, measured, strict=True):
                candidate.turns.append(worker.turn(settings.seconds))
                after_turn()
        for worker, candidate in zip(workers, measured, strict=True):
            candidate.peak_memory = worker.peak_memory()
    return measured
