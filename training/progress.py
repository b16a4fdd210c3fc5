"""The speed of a run, its waiting for data, and the time that is left; only shown to people."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from training import memory


class Progress:
    """Measures a run in windows of time, each from one `look` to the next.

    Args:
        batch_size: images per step, over all workers.
        clock: function that returns seconds.
    """

    def __init__(self, batch_size: int, clock: Callable[[], float] = time.perf_counter):
        self.batch_size, self.clock = batch_size, clock
        self.evaluation: float | None = None  # seconds that the last evaluation took
        self.open(0)

    def open(self, step: int) -> None:
        """Begin a window after `step` steps."""
        self.start, self.step, self.waited = self.clock(), step, 0.0

    def watch(self, batches: Iterable) -> Iterator:
        """Yield the same batches; the time until each one is ready counts as waiting."""
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
        """Count the time within this context as an evaluation, and not as training."""
        start = self.clock()
        yield
        self.evaluation = self.clock() - start
        self.start += self.evaluation

    def look(self, step: int, steps_left: int, evaluations_left: int) -> dict[str, Any]:
        """Return the figures of the window that ends, and begin a new one.

        They are "speed" (images per second), "waiting" (the part of the time spent waiting for
        data) and "left" (seconds until the run ends). Evaluations count in the time left once one
        has been timed.
        """
        seconds, steps = max(self.clock() - self.start, 1e-9), step - self.step
        left = steps_left * seconds / max(steps, 1) + evaluations_left * (self.evaluation or 0.0)
        waiting = self.waited / seconds
        self.open(step)
        return {"speed": steps * self.batch_size / seconds, "waiting": waiting, "left": left}


def describe(speed: float, waiting: float, **_: float) -> dict[str, str]:
    """Return the texts for a log line: speed, waiting for data, and peak resident memory."""
    return {
        "images/s": f"{speed:.0f}",
        "data wait": f"{100 * waiting:.0f} %",
        "memory": f"{memory.peak_memory():.0f} MB",
    }
