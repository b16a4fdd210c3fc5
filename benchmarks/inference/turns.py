"""Processes that take turns, each with one runtime."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase

from models import environment

import numpy as np

import utils
from deployment.child_process import how_it_ended
from training import memory
from utils import UserError

from .candidates import Candidate
from .runtimes import process_environment

TIME_LIMIT = 300.0  # seconds for loading and warm-up, and for a turn beyond its own length


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


class _Worker:
    """A process that runs benchmarks.inference.worker."""

    def __init__(self, candidate: Candidate, threads: int, batch: int, size: int):
        self._candidate = candidate
        numbers = map(str, (threads, candidate.streams, batch, size, TIME_LIMIT))
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed in __exit__)
        environment.set_timer_slack(50e-6)  # Linux's default, which the process inherits
        self._process = subprocess.Popen(
            [*utils.module_command("benchmarks.inference.worker"), candidate.runtime,
             candidate.source, *numbers],
            cwd=utils.ROOT,
            env={**os.environ, **process_environment(threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )  # fmt: skip

    def answer(self) -> dict:
        """Wait for the process's answer. Raises UserError when it has ended instead."""
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._errors.seek(0)
        ended = how_it_ended(self._process.wait(), self._errors.read(), TIME_LIMIT)
        raise UserError(
            f"{self._candidate.variant} ({self._candidate.source}) {ended}; "
            "leave it out by --variants or repair its runtime"
        )

    def turn(self, seconds: float) -> dict:
        """Run the network for `seconds`, and return the times of its passes."""
        print(seconds, file=self._process.stdin, flush=True)
        return self.answer()

    def peak_memory(self) -> float:
        """Return the peak memory of the process in MB."""
        return memory.peak_memory(self._process.pid)

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()


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
) -> list[Measured]:
    """Prepare the candidates and measure them in turns, each with `threads` threads per stream.

    `after_turn` is called after every turn. Raises UserError when a process fails.
    """
    for candidate in candidates:
        candidate.prepare()
    measured = [Measured(candidate, []) for candidate in candidates]
    with ExitStack() as stack:
        workers = [
            stack.enter_context(_Worker(candidate, threads, batch, size))
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
