"""Run an .mge file under MegEngine's own runtime, in a child process that may crash or stall.

The runtime is native code that can end its process: with channels in blocks of 8 on an AMD
processor with AVX-512, its oneDNN calls exit() in a thread that MegEngine's exit handlers then wait
for, so that the caller would never return. In a child process with a time limit this becomes an
ordinary error.
"""

from __future__ import annotations

import os
import subprocess
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
from .mge_child import Channel

TIME_LIMIT = 120  # seconds that loading a file, or running it once, may take
MOST_IMAGES = 8  # of one run, so that the limit is as good as for a single image
CHILD = "deployment.mge_child"  # the module that is run


class MgeFile:
    """An .mge file with one input, loaded by MegEngine's runtime.

    Call it with float32 images [N, C, H, W] to get logits [N, classes], or the list of outputs
    where there are several. The child process ends with the object.

    Args:
        path: the file.
        name: name of the file in error messages (default: its path).

    Attributes:
        metadata: metadata that `mge_export.export_mge` wrote; empty for a file from elsewhere.
        layout: memory layout of the feature maps, "nchw" or "nchw88".
        input_shape: shape [N, C, H, W] of the images that the file was written for.

    Raises UserError when the file is not an .mge file, and when the runtime fails, crashes or gives
    no answer within TIME_LIMIT seconds. No code in the file is executed.
    """

    def __init__(self, path: str | PathLike, name: str | PathLike | None = None):
        self.name, self.layout = name or path, None
        ours, theirs = Pipe()
        errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed by _end)
        with theirs:
            command = utils.module_command(CHILD, "-W", "ignore")
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno()), os.path.abspath(path), str(TIME_LIMIT)],
                cwd=utils.ROOT,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # MegEngine prints there that it has no GPU
                stderr=errors,
            )
        self._channel, self._errors = Channel(ours), errors
        weakref.finalize(self, _end, self._process, ours, errors)
        description, _ = self._receive()
        if "unreadable" in description:
            raise UserError(
                f"cannot read {self.name}: {description['unreadable']}; "
                "give an .mge file that was written completely"
            )
        self.metadata, self.layout = description["metadata"], description["layout"]
        self.input_shape: list[int] = description["input_shape"]
        if "error" in description:
            raise UserError(self._failure(f"failed ({description['error']})"))

    def __call__(self, images: np.ndarray) -> np.ndarray | list[np.ndarray]:
        step = max(MOST_IMAGES, self.input_shape[0])
        outputs = self._run(images[:step])
        for start in range(step, len(images), step):
            more = self._run(images[start : start + step])
            outputs = [np.concatenate(pair) for pair in zip(outputs, more, strict=True)]
        return outputs[0] if len(outputs) == 1 else outputs

    def _run(self, images: np.ndarray) -> list[np.ndarray]:
        with suppress(OSError):  # the process has ended; _receive reports how
            self._channel.send(images)
        answer, outputs = self._receive()
        if "error" in answer:
            raise UserError(self._failure(f"failed ({answer['error']})"))
        return outputs

    def _receive(self) -> tuple[dict, list[np.ndarray]]:
        try:
            return self._channel.receive()
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
