"""Functions that are measured in a process of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from models import environment

from utils import UserError


@contextmanager
def own_process(what: str) -> Iterator[Callable[..., Any]]:
    """Yield a function that runs others in one new process: call(function, *arguments) -> result.

    The process starts at the first call, with the memory settings of a training. Raises UserError
    when it is killed, as it is where memory runs out.

    Args:
        what: what is measured, for the error message.
    """
    context = get_context("spawn")
    with ProcessPoolExecutor(1, context, environment.tune_for_computing) as executor:

        def call(function: Callable, *arguments: object) -> Any:
            try:
                return executor.submit(function, *arguments).result()
            except BrokenProcessPool:
                raise UserError(
                    f"the process that measures {what} was killed, probably for lack of memory; "
                    "measure smaller images or batches"
                ) from None

        yield call
