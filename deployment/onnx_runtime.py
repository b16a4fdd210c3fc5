"""onnxruntime sessions, in which int8 networks stay accurate on CPUs without VNNI instructions."""

from __future__ import annotations

import os
from os import PathLike
from pathlib import Path

import onnxruntime


def session(model: str | PathLike | bytes, spin: bool = True) -> onnxruntime.InferenceSession:
    """Return a session on the CPU for a float or int8 ONNX file, or for the content of one.

    It uses kernels that multiply uint8 by uint8 and cannot saturate on x86 CPUs without VNNI
    instructions, see int8/weights.py. They are slower, and needed only for int8 files from
    elsewhere.

    Args:
        model: path or content of the file.
        spin: whether waiting threads keep their cores busy. That makes single images faster; many
            short-lived sessions, and other programs, are faster without it.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised as well
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    content = model if isinstance(model, bytes) else _onnx_file(model)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _onnx_file(path: str | PathLike) -> str | bytes:
    """Return what onnxruntime opens a file by: its name, or its content if the name is not UTF-8.

    Weights that are in other files beside it are found by the name alone.
    """
    name = os.fspath(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        return Path(path).read_bytes()
    return name
