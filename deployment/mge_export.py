"""Export a network as an .mge file for MegEngine's own runtime.

The file fixes the memory layout of the feature maps. The plain layout, "nchw", runs on every
processor. Channels in blocks of 8, "nchw88", are faster with one thread on some processors: with
AVX2, RepVGGA0 at 224 px took 0.83 of the time; on an Intel processor with AVX-512 it took 1.1 times
as long, and on an AMD processor with AVX-512 such a file does not run. The blocked layout does not
gain from more threads, is slower in depthwise convolutions, fails where the number of channels is
not a multiple of 8, and is a hundred times slower in int8.
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
from megengine.jit import trace

from data.transforms import Preprocessing

from . import features as maps
from .input_format import adapt, describe
from .mge_runtime import MgeFile
from .tracing import ExportError, Unsupported, in_channels, replay
from .verification import check_sizes, write_verified

_FUSED = {"enable_fuse_conv_bias_nonlinearity": True}
LAYOUTS = {"nchw": _FUSED, "nchw88": {**_FUSED, "enable_nchw88": True}}


class Exported(NamedTuple):
    """Result of an export; `relative_error` is the file's error against the live network."""

    relative_error: float
    layout: str


def export_mge(
    model: M.Module,
    path: str | PathLike,
    preprocessing: Preprocessing,
    *,
    file_input: Preprocessing | None = None,
    size: int | tuple[int, int] = 224,
    layout: str = "nchw",
    input_name: str = "input",
    output_name: str = "logits",
    metadata: dict[str, Any] | None = None,
    features: bool = False,
    free_size: bool = False,
) -> Exported:
    """Write `model` in its current form and in evaluation mode as an .mge file for any batch size.

    Before the file gets its name, MegEngine's runtime runs it at two batch sizes, and its logits
    are compared with the live network's.

    Args:
        model, path, preprocessing, file_input, size, input_name, output_name, metadata, features,
            free_size: see `onnx_export.export_onnx`.
        layout: "nchw", which runs on every processor, or "nchw88".

    Raises ExportError when the logits differ, and UserError when the file cannot be written or does
    not run on this machine; no file is left behind in either case.
    """
    size = (size, size) if isinstance(size, int) else size
    file_input = file_input or preprocessing
    training = model.training
    model.eval()
    try:
        network = maps.backbone(model) if features else model
        replay(network, size, None, _refuse_clip)
        adapted = adapt(network, preprocessing, file_input)
        properties = {**(metadata or {}), "preprocessing": describe(file_input, size)}
        if free_size:  # the graph has the size of the images that it was traced with
            properties["free_size"] = True
        options = _options(adapted, layout)
        names = list(maps.NAMES) if features else [output_name]
        content = _dump(adapted, size, options, input_name, names, properties)
        check = write_verified(
            path,
            content,
            lambda temporary: MgeFile(temporary, path),
            network,
            preprocessing,
            file_input,
            check_sizes(size, free_size, (1, 3)),
        )
    finally:
        model.train(training)
    return Exported(check.relative_error, layout)


def _options(model: M.Module, layout: str) -> dict[str, bool]:
    """Return the options of MegEngine's `dump` for a layout.

    Raises ExportError for an int8 network in another layout than "nchw".
    """
    tensors = (*model.parameters(), *model.buffers())
    if all(tensor.dtype == np.float32 for tensor in tensors):
        return LAYOUTS[layout]
    if layout != "nchw":
        raise ExportError(
            f"layout {layout} makes an int8 network take seconds for an image; leave out --layout"
        )
    return {}


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
    output_names: list[str],
    properties: dict[str, Any],
) -> bytes:
    """Return the content of the file."""
    file = io.BytesIO()
    with _any_device():
        tensors = (*model.parameters(), *model.buffers())
        model = copy.deepcopy(model, {id(t): mge.Parameter(t.numpy()) for t in tensors})
        traced = trace(lambda x: model(x), symbolic=True, capture_as_const=True)
        traced(mge.Tensor(np.zeros((1, in_channels(model), *size), np.float32)))
        traced.dump(
            file,
            arg_names=[input_name],
            output_names=output_names,
            user_info=json.dumps(properties),
            **options,
        )
    return file.getvalue()


@contextmanager
def _any_device() -> Iterator[None]:
    """Put tensors on "xpux", any device, the only one that MegEngine writes files for."""
    device = mge.get_default_device()
    with _silence():
        mge.set_default_device("xpux")
        try:
            yield
        finally:
            mge.set_default_device(device)


@contextmanager
def _silence() -> Iterator[None]:
    """Discard stdout and stderr: MegEngine looks for a GPU and prints lines about it."""
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
