"""Processes that measure in turns: each waits for a request, and answers with a line of JSON."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from contextlib import suppress

from models import environment

import utils
from deployment.child_process import how_it_ended
from training import memory
from utils import UserError

TIME_LIMIT = 300.0  # seconds for a process to get ready, and for a turn beyond its own length


class Process:
    """A process that runs a module of this project; use it in a `with` statement.

    Args:
        name: what it measures, for error messages.
        command: the module's name and its arguments, to which TIME_LIMIT is added.
        variables: environment variables beside those of this process.
        advice: what a user can do when it fails, for error messages.
    """

    def __init__(self, name: str, command: list[str], variables: dict[str, str], advice: str):
        self._name, self._advice = name, advice
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed in __exit__)
        environment.set_timer_slack(50e-6)  # Linux's default, which the process inherits
        self._process = subprocess.Popen(
            [*utils.module_command(command[0]), *command[1:], str(TIME_LIMIT)],
            cwd=utils.ROOT,
            env={**os.environ, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def answer(self) -> dict:
        """Wait for the process's answer. Raises UserError when it has ended instead."""
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._errors.seek(0)
        ended = how_it_ended(self._process.wait(), self._errors.read(), TIME_LIMIT)
        raise UserError(f"{self._name} {ended}; {self._advice}")

    def turn(self, request: object = "") -> dict:
        """Send a line to the process, and return its answer. Raises UserError when it has ended."""
        with suppress(BrokenPipeError):  # it has ended, and `answer` says how
            print(request, file=self._process.stdin, flush=True)
        return self.answer()

    def peak_memory(self) -> float:
        """Return the peak memory of the process in MB."""
        return memory.peak_memory(self._process.pid)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()
