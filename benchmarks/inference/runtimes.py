"""Runtimes that benchmark.py compares, as functions that load a network.

A runtime is imported only when it is used, so that no other runtime is in its process.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Runner = Callable[[np.ndarray], np.ndarray]  # float32 [N, C, H, W] -> logits [N, classes]
# load(file or name, threads, streams) -> a function for each stream; they can run in parallel
Load = Callable[[str, int, int], list[Runner]]


def process_environment(threads: int) -> dict[str, str]:
    """Return the environment variables that a process needs before it imports a runtime."""
    count = str(threads)
    return {
        # a pool of threads is a device to MegEngine
        "MGE_DEFAULT_DEVICE": "cpu0" if threads == 1 else f"multithread{count}:0",
        "OMP_NUM_THREADS": count,  # PyTorch
    }


def megengine(path: str, threads: int, streams: int) -> list[Runner]:
    """Load a checkpoint in its form, for one stream; the environment sets the number of threads."""
    from models import environment

    import megengine as mge

    import weights

    environment.tune_for_computing()
    model = weights.load(path)
    model.eval()
    return [lambda images: model(mge.Tensor(images)).numpy()]


def mge_file(path: str, threads: int, streams: int) -> list[Runner]:
    """Load an .mge file under MegEngine Lite, the runtime that does not need Python's MegEngine.

    Keeping freed memory in huge pages makes it 1.04 times as fast, 1.18 times with two threads.
    """
    from models import environment

    import megenginelite as lite

    environment.tune_for_computing()

    def stream() -> Runner:
        network = lite.LiteNetwork()
        if threads == 1:
            network.enable_cpu_inplace_mode()  # otherwise one thread computes for all streams
        network.threads_number = threads
        network.load(path)
        entry = network.get_io_tensor(network.get_input_name(0))
        result = network.get_io_tensor(network.get_output_name(0))

        def run(images: np.ndarray) -> np.ndarray:
            entry.set_data_by_copy(images)
            network.forward()
            network.wait()
            return result.to_numpy()

        return run

    return [stream() for _ in range(streams)]


def onnxruntime(path: str | bytes, threads: int, streams: int, **settings: str) -> list[Runner]:
    """Load an ONNX file, or the content of one, with additional `settings` of the session."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry(
        "session.force_spinning_stop", "1"
    )  # so that waiting threads do not disturb the next turn
    for key, value in settings.items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return [lambda images: session.run(None, {name: images})[0]] * streams


def onnxruntime_precise(path: str, threads: int, streams: int) -> list[Runner]:
    """Load an int8 ONNX file with kernels that do not saturate on processors without VNNI."""
    return onnxruntime(path, threads, streams, **{"session.x64quantprecision": "1"})


def openvino(path: str, threads: int, streams: int) -> list[Runner]:
    """Load an ONNX file under OpenVINO in float32, where OpenVINO might choose bfloat16."""
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": threads * streams,
        "NUM_STREAMS": streams,
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,
    }
    model = openvino.Core().compile_model(path, "CPU", settings)

    def stream() -> Runner:
        request = model.create_infer_request()
        return lambda images: request.infer([images], share_inputs=True)[0]

    return [stream() for _ in range(streams)]


def pytorch(name: str, threads: int, streams: int) -> list[Runner]:
    """Create timm's network of this name, random and fused, in PyTorch's eager mode."""
    import timm
    import torch
    from timm.utils.model import reparameterize_model

    torch.set_num_threads(threads)
    model = reparameterize_model(timm.create_model(name).eval())

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(images)).numpy()

    return [run] * streams


def matrix_product(side: str, threads: int, streams: int) -> list[Runner]:
    """Create a product of float32 matrices [side, side], computed by onnxruntime.

    Its speed stands for the highest rate of multiply-adds that the processor reaches in practice;
    NumPy's product reached 93 % of it on a Xeon.
    """
    from onnx import TensorProto, helper, numpy_helper

    shape = (int(side), int(side))
    left, right = np.random.default_rng(0).standard_normal((2, *shape), np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["left", "right"], ["product"])],
        "product",
        [helper.make_tensor_value_info("left", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("product", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(right, "right")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    run, *_ = onnxruntime(model.SerializeToString(), threads, 1)
    return [lambda images: run(left)] * streams


LOAD: dict[str, Load] = {
    load.__name__: load
    for load in (
        megengine,
        mge_file,
        onnxruntime,
        onnxruntime_precise,
        openvino,
        pytorch,
        matrix_product,
    )
}
