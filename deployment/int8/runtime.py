"""onnxruntime sessions, with the switch that keeps int8 networks accurate on older CPUs."""

from __future__ import annotations

from os import PathLike

import onnxruntime


def session(
    model: str | PathLike | bytes, threads: int = 0, precise: bool = True, spin: bool = True
) -> onnxruntime.InferenceSession:
    """A session on the CPU for a file, or its content, float or int8.

    Args:
        threads: that compute; 0 for as many as there are cores.
        precise: on x86 CPUs without VNNI instructions, take kernels that multiply uint8 by uint8
            and cannot saturate; see `weights`. They are slower, and needed only for int8 files of
            others: the weights of ours fit. Other CPUs ignore it.
        spin: threads that wait keep their cores busy, which makes single images faster; without,
            many short-lived sessions are, and whatever else runs on the machine.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.x64quantprecision", str(int(precise)))
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    content = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
