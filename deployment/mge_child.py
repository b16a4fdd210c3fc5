"""The process in which MegEngine's runtime loads and runs one .mge file, for `mge_runtime`.

`python -m deployment.mge_child CONNECTION FILE SECONDS` first tells what the file says of itself,
then answers each array that it is sent by the network's output; see `Answers` for how. It ends with
its connection, and where an answer takes longer than SECONDS the system ends it by SIGALRM.
"""

from __future__ import annotations

import io
import json
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

from models import environment

import megengine.core.tensor.megbrain_graph as G
import numpy as np
from megengine.utils.comp_graph_tools import GraphInference

from deployment.child_process import end_at_once_on_exit, time_limit
from weights.unpickle import Unpickler


class Answers:
    """One end of a connection over which arrays travel: a line of JSON, then the array's bytes."""

    def __init__(self, connection: Connection):
        self.connection = connection

    def send(self, array: np.ndarray | None = None, **said: Any) -> None:
        """Send plain values, and a float32 array if there is one."""
        shape = None if array is None else array.shape
        self.connection.send_bytes(json.dumps({**said, "shape": shape}).encode())
        if array is not None:
            self.connection.send_bytes(np.ascontiguousarray(array, np.float32).tobytes())

    def receive(self) -> tuple[dict[str, Any], np.ndarray | None]:
        """Wait for what the other end sends; raises EOFError or OSError when it has ended."""
        said = json.loads(self.connection.recv_bytes())
        shape = said.pop("shape")
        if shape is None:
            return said, None
        return said, np.frombuffer(self.connection.recv_bytes(), np.float32).reshape(shape)


def describe(path: str) -> dict[str, Any]:
    """Return the metadata that `export_mge` wrote into a file and the layout of its maps.

    Raises OSError or RuntimeError where MegEngine cannot read the file.
    """
    with open(path, "rb") as file:
        metadata = G.load_graph(file).metadata
    options = G.deserialize_infer_option(metadata.optimize_options)
    layouts = [name[len("enable_") :] for name in options if name.startswith("enable_nchw")]
    try:
        said = dict(json.loads(Unpickler(io.BytesIO(metadata.user_info)).load()))
    except Exception:  # a pickle of anything, or none
        said = {}
    return {"metadata": said, "layout": layouts[0] if layouts else "nchw"}


def load(path: str, answers: Answers) -> GraphInference | None:
    """Load the file and answer with what it says of itself; None where that failed."""
    try:
        said = describe(path)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "it is none of MegEngine's, or damaged"
        answers.send(unreadable=reason)
        return None
    try:
        with open(path, "rb") as file:
            graph = GraphInference(file)
    except RuntimeError as error:
        answers.send(**said, error=str(error).splitlines()[0])
        return None
    answers.send(**said)
    return graph


def main() -> None:
    """Answer until the other end of the connection is closed."""
    descriptor, path, seconds = sys.argv[1:]
    answers = Answers(Connection(int(descriptor)))
    environment.tune_for_training()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then ends this
    with time_limit(float(seconds)):
        graph = load(path, answers)
    if graph is None:
        return
    end_at_once_on_exit()
    while True:
        try:
            _, images = answers.receive()
        except (EOFError, OSError):
            return
        with time_limit(float(seconds)):
            try:
                output = next(iter(graph.run(images).values()))
            except RuntimeError as error:
                answers.send(error=str(error).splitlines()[0])
            else:
                answers.send(output)


if __name__ == "__main__":
    main()
