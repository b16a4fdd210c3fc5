"""Images that take too long to read: a network drive that is gone, a pipe that nobody fills."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from utils import UserError

LIMIT = 120.0  # seconds for one image, unless told
TICK = 0.25  # seconds between two looks at what is waited for
AGAIN = 2.0  # seconds after which a batch is ended again if it goes on


def stalled(image: object, limit: float) -> UserError:
    """Return the error for an image that was not ready within `limit` seconds."""
    return UserError(
        f"reading the image {image} takes more than {limit:g} s; look at that file and at the disk "
        "or network that it is on; train.py and test.py wait longer with a larger --stall-timeout"
    )


class Patience:
    """The time for which the same thing has been waited for; 0 seconds as a limit mean forever.

    Time counts in ticks, so that a computer or process that was suspended has not waited.
    """

    def __init__(self, limit: float):
        self.limit = limit
        self._what: object = None
        self._waited = 0.0

    def ends(self, what: object, seconds: float, extra: float = 0.0) -> bool:
        """Count more seconds of waiting for `what`; return whether they exceed limit and extra."""
        if what != self._what:
            self._what, self._waited = what, 0.0
        self._waited += seconds
        return self.limit > 0 and self._waited > self.limit + extra


class _Ended(BaseException):
    """What ends a batch, on its way through decoders that take every Exception for a bad image."""

    def __init__(self, reason: BaseException):
        super().__init__(reason)
        self.reason = reason


@contextmanager
def watched(
    images: Sequence[object], limit: float, while_waiting: Callable[[], object]
) -> Iterator[Callable[[int], None]]:
    """Watch this thread prepare a batch: yield a function to call with the row of each image.

    An image that takes longer than `limit` seconds is an error that names it.
    `while_waiting` is called now and then, and may raise what ends the batch. Nothing is watched
    in other threads than the main one, which alone receives signals.
    """
    at = 0
    patience = Patience(limit)
    tick = min(TICK, limit / 4) if limit else TICK

    def note(row: int) -> None:
        nonlocal at
        at = row

    def look(_number: int, _frame: object) -> None:
        try:
            while_waiting()
            if patience.ends(at, tick):
                raise stalled(images[at], limit)
        except BaseException as error:
            # not at once again, while this one is on its way; but again, as C code may lose it
            signal.setitimer(signal.ITIMER_REAL, AGAIN, AGAIN)
            raise _Ended(error) from None

    if threading.current_thread() is not threading.main_thread():
        yield note
        return
    previous = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, tick, tick)
    try:
        yield note
    except _Ended as ended:
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise ended.reason from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous or signal.SIG_DFL)
