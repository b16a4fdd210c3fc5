"""How fast a run is, what it waits for and how long it still takes. Nothing depends on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from training import memory


class Progress:
    """Watches a run by the clock, in windows: from one `look` to the next.

    Args:
        batch_size: images a step, over all workers.
        clock: gives seconds.
    """

    def __init__(self, batch_size: int, clock: Callable[[], float] = time.perf_counter):
        self.batch_size, self.clock = batch_size, clock
        self.evaluation: float | None = None  # seconds of the last one
        self.open(0)

    def open(self, step: int) -> None:
        """Begin a window after so many steps."""
        self.start, self.step, self.waited = self.clock(), step, 0.0

    def watch(self, batches: Iterable) -> Iterator:
        """The same batches; the time until each is there counts as waiting."""
        batches = iter(batches)
        while True:
            start = self.clock()
            batch = next(batches, None)
            self.waited += self.clock() - start
            if batch is None:
                return
            yield batch

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """What is done within counts as an evaluation, and not for the speed of training."""
        start = self.clock()
        yield
        self.evaluation = self.clock() - start
        self.start += self.evaluation

    def look(self, step: int, steps_left: int, evaluations_left: int) -> dict[str, Any]:
        """images/s, share of the time spent waiting for data, seconds left of the run; a new window
        begins. Until an evaluation has been timed, none is counted in the time left."""
        seconds, steps = max(self.clock() - self.start, 1e-9), step - self.step
        left = steps_left * seconds / max(steps, 1) + evaluations_left * (self.evaluation or 0.0)
        waiting = self.waited / seconds
        self.open(step)
        return {"speed": steps * self.batch_size / seconds, "waiting": waiting, "left": left}


def describe(speed: float, waiting: float, **_: float) -> dict[str, str]:
    """For people: speed, waiting for data, and this process's peak of resident memory."""
    return {
        "images/s": f"{speed:.0f}",
        "data wait": f"{100 * waiting:.0f} %",
        "memory": f"{memory.peak_memory():.0f} MB",
    }
