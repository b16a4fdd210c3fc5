"""Writing a network as an .mge file for MegEngine's own runtime, and running one.

MegEngine lays the file out for a machine. On x86, channels in blocks of 8 ("nchw88") are the
fastest for one thread where vectors have 8 numbers: RepVGGA0 at 224 px took 0.83 of the time with
AVX2, but 1.1 times as long on a processor with AVX-512, whose 16 only matrix products use. They do
not gain from more threads, are slower in depthwise convolutions, fail where channels are no
multiple of 8, and are a hundred times slower in int8.
"""

from __future__ import annotations

import copy
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any, NamedTuple

import megengine as mge
import megengine.functional as F
import megengine.module as M
import numpy as np
from megengine.core.tensor.megbrain_graph import load_graph
from megengine.jit import trace
from megengine.utils.comp_graph_tools import GraphInference

from data.transforms import Preprocessing
from utils import UserError, processor_has
from weights.unpickle import Unpickler

from .input_format import adapt, note
from .proof import Runner, write_proven
from .tracing import ExportError, Unsupported, replay

_FUSED = {"enable_fuse_conv_bias_nonlinearity": True}
_OPTIONS = {"nchw88": {**_FUSED, "enable_nchw88": True}, "nchw": _FUSED, "as it is": {}}


class Exported(NamedTuple):
    """What was written; relative_error: of the file against the live network."""

    relative_error: float
    layout: str
    failed: dict[str, str]  # layouts that would have been faster -> why they were not taken


def export_mge(
    model: M.Module,
    path: str | PathLike,
    preprocessing: Preprocessing,
    *,
    takes: Preprocessing | None = None,
    size: int | tuple[int, int] = 224,
    threads: int = 1,
    input_name: str = "input",
    output_name: str = "logits",
    metadata: dict[str, Any] | None = None,
) -> Exported:
    """Write `model`, in the form it is in and in evaluation mode, for MegEngine's own runtime.

    The file takes any number of images at once. MegEngine loads it and runs it at two batch sizes;
    only when it does as the live network it gets its name.

    Args:
        model, path, preprocessing, takes, size, input_name, output_name, metadata: see
            `onnx_export.export_onnx`.
        threads: that the file is to be run by, on a processor like this one; they decide about its
            layout.

    Raises ExportError when the file does not compute what the network does and UserError when it
    cannot be written; nothing is left behind then.
    """
    size = (size, size) if isinstance(size, int) else size
    takes = takes or preprocessing
    training = model.training
    model.eval()
    try:
        replay(model, size, None, _refuse_clip)
        adapted = adapt(model, preprocessing, takes)
        properties = {**(metadata or {}), "preprocessing": note(takes, size)}
        *faster, last = _layouts(adapted, threads)
        failed = {}
        for layout in (*faster, last):
            content = _dump(adapted, size, _OPTIONS[layout], input_name, output_name, properties)
            try:
                with _silence():
                    proof = write_proven(
                        path, content, load, model, preprocessing, takes, size, (1, 3)
                    )
                break
            except (RuntimeError, ExportError) as error:  # MegEngine's own errors are the former
                if layout == last:
                    raise
                failed[layout] = str(error).splitlines()[0]
    finally:
        model.train(training)
    return Exported(proof.relative_error, layout, failed)


def load(path: str | PathLike) -> Runner:
    """A function that runs an .mge file of one input and one output: [N, 3, H, W] -> logits.

    Raises UserError for what is no such file. Nothing in it is executed.
    """
    try:
        with open(path, "rb") as file, _silence():
            graph = GraphInference(file)
    except (OSError, RuntimeError) as error:
        raise _unreadable(path, error) from None
    return lambda images: next(iter(graph.run(images).values()))


def read_metadata(path: str | PathLike) -> dict[str, Any]:
    """What `export_mge` has noted in a file; an empty dict for one from elsewhere."""
    try:
        with open(path, "rb") as file, _silence():
            found = load_graph(file).metadata
    except (OSError, RuntimeError) as error:
        raise _unreadable(path, error) from None
    try:
        return dict(json.loads(Unpickler(io.BytesIO(found.user_info)).load()))
    except Exception:  # a pickle of anything, or none
        return {}


def _unreadable(path: str | PathLike, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or "it is none of MegEngine's, or damaged"
    return UserError(f"cannot read {path}: {reason}; give an .mge file that was written completely")


def _layouts(model: M.Module, threads: int) -> list[str]:
    """The keys of _OPTIONS that suit the network, the fastest first."""
    tensors = (*model.parameters(), *model.buffers())
    if any(tensor.dtype != np.float32 for tensor in tensors):
        return ["as it is"]
    depthwise = any(
        isinstance(m, M.Conv2d) and m.groups == m.in_channels > 1 for m in model.modules()
    )
    plain = threads > 1 or depthwise or processor_has("avx512f")
    return ["nchw"] if plain else ["nchw88", "nchw"]


def _refuse_clip(path: str, operator: object, *_: object) -> None:
    if operator is F.clip:
        raise Unsupported(
            "uses F.clip, which MegEngine writes with its lower bound in place of both; "
            "use F.minimum and F.maximum, or F.relu6"
        )


def _dump(
    model: M.Module,
    size: tuple[int, int],
    options: dict[str, bool],
    input_name: str,
    output_name: str,
    properties: dict[str, Any],
) -> bytes:
    """The content of the file."""
    file = io.BytesIO()
    with _any_device():
        tensors = (*model.parameters(), *model.buffers())
        model = copy.deepcopy(model, {id(t): mge.Parameter(t.numpy()) for t in tensors})
        traced = trace(lambda x: model(x), symbolic=True, capture_as_const=True)
        traced(mge.Tensor(np.zeros((1, 3, *size), np.float32)))
        traced.dump(
            file,
            arg_names=[input_name],
            output_names=[output_name],
            user_info=json.dumps(properties),
            **options,
        )
    return file.getvalue()


@contextmanager
def _any_device() -> Iterator[None]:
    """Within, tensors are on "xpux", any device, the only one that MegEngine writes files for."""
    device = mge.get_default_device()
    with _silence():
        mge.set_default_device("xpux")
        try:
            yield
        finally:
            mge.set_default_device(device)


@contextmanager
def _silence() -> Iterator[None]:
    """Nothing reaches stdout and stderr within: MegEngine looks for a GPU and says much of it."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [(fd, os.dup(fd)) for fd in (1, 2)]
    try:
        with open(os.devnull, "wb") as nothing:
            for fd, _ in kept:
                os.dup2(nothing.fileno(), fd)
        yield
    finally:
        for fd, copied in kept:
            os.dup2(copied, fd)
            os.close(copied)
