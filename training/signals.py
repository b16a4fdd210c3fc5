"""SIGINT and SIGTERM while a network trains: noted at once, acted on between two steps."""

from __future__ import annotations

import signal


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived, and training has stopped; `signal` is the signal's number."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.signal = number


class StopSignal:
    """A context within which SIGINT and SIGTERM are noted and otherwise ignored.

    Attributes:
        number: the signal that arrived last, or None.
    """

    def __init__(self):
        self.number: int | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignal:
        self._previous = {
            number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: object) -> None:
        self.number = number
