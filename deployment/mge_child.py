"""The process in which MegEngine's runtime loads and runs one .mge file, for `mge_runtime`.

`python -m deployment.mge_child CONNECTION FILE SECONDS` first sends the file's metadata, then
answers each array of images with the network's outputs, as messages of `Channel`. The process ends
when its connection is closed, or by SIGALRM when an answer takes longer than SECONDS.
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
from megengine.utils.comp_graph_tools import GraphInference, get_dep_vars

from data.unpickle import Unpickler
from deployment.child_process import end_at_once_on_exit, time_limit


class Channel:
    """One end of a connection that carries messages: a JSON object, then the bytes of arrays."""

    def __init__(self, connection: Connection):
        self.connection = connection

    def send(self, *arrays: np.ndarray, **values: Any) -> None:
        """Send plain values and arrays, as float32."""
        shapes = [array.shape for array in arrays]
        self.connection.send_bytes(json.dumps({**values, "shapes": shapes}).encode())
        for array in arrays:
            self.connection.send_bytes(np.ascontiguousarray(array, np.float32).tobytes())

    def receive(self) -> tuple[dict[str, Any], list[np.ndarray]]:
        """Wait for a message; raises EOFError or OSError when the other end is closed."""
        values = json.loads(self.connection.recv_bytes())
        shapes = values.pop("shapes")
        return values, [
            np.frombuffer(self.connection.recv_bytes(), np.float32).reshape(shape)
            for shape in shapes
        ]


def describe(path: str) -> dict[str, Any]:
    """Return what a file says: `export_mge`'s metadata, its memory layout, its input's shape.

    Raises OSError or RuntimeError where MegEngine cannot read the file.
    """
    with open(path, "rb") as file:
        loaded = G.load_graph(file)
    metadata = loaded.metadata
    inputs = get_dep_vars(loaded.output_vars_list, "Host2DeviceCopy")
    options = G.deserialize_infer_option(metadata.optimize_options)
    layouts = [name[len("enable_") :] for name in options if name.startswith("enable_nchw")]
    try:
        properties = dict(json.loads(Unpickler(io.BytesIO(metadata.user_info)).load()))
    except Exception:  # of a file from elsewhere: a pickle of anything, or none
        properties = {}
    return {
        "metadata": properties,
        "layout": layouts[0] if layouts else "nchw",
        "input_shape": list(map(int, inputs[0].shape)),
    }


def load(path: str, channel: Channel) -> GraphInference | None:
    """Load the file and send its metadata; send an error and return None when that fails."""
    try:
        description = describe(path)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "it is none of MegEngine's, or damaged"
        channel.send(unreadable=reason)
        return None
    try:
        with open(path, "rb") as file:
            graph = GraphInference(file)
    except RuntimeError as error:
        channel.send(**description, error=str(error).splitlines()[0])
        return None
    channel.send(**description)
    return graph


def main() -> None:
    """Run the network on each array that is received, until the connection is closed."""
    descriptor, path, seconds = sys.argv[1:]
    channel = Channel(Connection(int(descriptor)))
    environment.tune_for_computing()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this
    with time_limit(float(seconds)):
        graph = load(path, channel)
    if graph is None:
        return
    end_at_once_on_exit()
    while True:
        try:
            _, (images,) = channel.receive()
        except (EOFError, OSError):
            return
        with time_limit(float(seconds)):
            try:
                outputs = graph.run(images).values()
            except RuntimeError as error:
                channel.send(error=str(error).splitlines()[0])
            else:
                channel.send(*outputs)


if __name__ == "__main__":
    main()
