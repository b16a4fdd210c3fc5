"""Running an .mge file under MegEngine's own runtime, in a process that may crash or stall.

The runtime is native code that can end the process it is in: given channels in blocks of 8 on an
AMD processor with AVX-512, its oneDNN calls exit() in a thread that MegEngine's exit handlers then
wait for, so that the caller never hears of it. In a child process with a time limit that is an
error like any other.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import weakref
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from os import PathLike
from typing import BinaryIO

import numpy as np

import utils
from utils import UserError

from .child_process import how_it_ended
from .mge_child import Answers

TIME_LIMIT = 120  # seconds that loading a file, or running it once, may take
CHILD = "deployment.mge_child"  # the module that is run


class MgeFile:
    """An .mge file of one input and one output, which MegEngine's runtime has loaded.

    Call it with float32 images [N, 3, H, W] for the logits [N, classes]. Its process ends with it.

    Args:
        path: the file.
        name: what messages call it, where that is not its path.

    Attributes:
        metadata: what `mge_export.export_mge` has noted in the file; empty for one from elsewhere.
        layout: how its maps lie in memory, "nchw" or "nchw88".

    Raises UserError, one sentence, for what is no such file, and whenever the runtime fails,
    crashes or gives no answer within TIME_LIMIT seconds. Nothing in the file is executed.
    """

    def __init__(self, path: str | PathLike, name: str | PathLike | None = None):
        self.name, self.layout = name or path, None
        ours, theirs = Pipe()
        errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed by _end)
        with theirs:
            command = [sys.executable, "-W", "ignore", "-m", CHILD]
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno()), os.path.abspath(path), str(TIME_LIMIT)],
                cwd=utils.ROOT,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # MegEngine tells on it that there is no GPU
                stderr=errors,
            )
        self._answers, self._errors = Answers(ours), errors
        weakref.finalize(self, _end, self._process, ours, errors)
        said, _ = self._answer()
        if "unreadable" in said:
            raise UserError(
                f"cannot read {self.name}: {said['unreadable']}; "
                "give an .mge file that was written completely"
            )
        self.metadata, self.layout = said["metadata"], said["layout"]
        if "error" in said:
            raise UserError(self._failure(f"failed ({said['error']})"))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        with suppress(OSError):  # the process has ended before; _answer says how
            self._answers.send(images)
        said, logits = self._answer()
        if "error" in said:
            raise UserError(self._failure(f"failed ({said['error']})"))
        return logits

    def _answer(self) -> tuple[dict, np.ndarray | None]:
        try:
            return self._answers.receive()
        except (EOFError, OSError):
            self._errors.seek(0)
            ended = how_it_ended(self._process.wait(), self._errors.read(), TIME_LIMIT)
            raise UserError(self._failure(ended)) from None

    def _failure(self, what: str) -> str:
        if self.layout == "nchw":
            advice = "report it with the file, and export the network as ONNX meanwhile"
        else:
            advice = "export it without --layout, as nchw, which runs on every processor"
        return (
            f"MegEngine's runtime {what} on {self.name}, whose layout is "
            f"{self.layout or 'not known yet'}; {advice}"
        )


def _end(process: subprocess.Popen, connection: Connection, errors: BinaryIO) -> None:
    connection.close()
    process.kill()
    process.wait()
    errors.close()
