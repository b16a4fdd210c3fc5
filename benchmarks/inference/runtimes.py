"""The runtimes that benchmark.py compares: each loads a network for so many threads.

Nothing is imported before it is used: a process has one of these runtimes in it, and no other.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Runner = Callable[[np.ndarray], np.ndarray]  # float32 [N, 3, H, W] -> logits [N, classes]
# load(file or name, threads, streams): for each stream a function that can run beside the others
Load = Callable[[str, int, int], list[Runner]]


def process_environment(threads: int) -> dict[str, str]:
    """What must stand in a process's environment before a runtime is imported there."""
    count = str(threads)
    return {
        # a pool of threads is a device to MegEngine
        "MGE_DEFAULT_DEVICE": "cpu0" if threads == 1 else f"multithread{count}:0",
        "OMP_NUM_THREADS": count,  # PyTorch
    }


def megengine(path: str, threads: int, streams: int) -> list[Runner]:
    """A checkpoint in the form that it has; one stream only. The threads are the environment's."""
    from models import environment

    import megengine as mge

    import weights

    environment.tune_for_training()
    model = weights.load(path)
    model.eval()
    return [lambda images: model(mge.Tensor(images)).numpy()]


def mge_file(path: str, threads: int, streams: int) -> list[Runner]:
    """An .mge file under MegEngine Lite, the runtime without Python's MegEngine.

    Keeping freed memory in huge pages gives 1.04 times the speed, 1.18 with two threads.
    """
    from models import environment

    import megenginelite as lite

    environment.tune_for_training()

    def stream() -> Runner:
        network = lite.LiteNetwork()
        if threads == 1:
            network.enable_cpu_inplace_mode()  # else one thread computes for all streams
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
    """An ONNX file, or what is in one; `settings` are of the session."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")  # when others have a turn
    for key, value in settings.items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return [lambda images: session.run(None, {name: images})[0]] * streams


def onnxruntime_precise(path: str, threads: int, streams: int) -> list[Runner]:
    """An int8 ONNX file, without the saturation of 16 bits on processors that have no VNNI."""
    return onnxruntime(path, threads, streams, **{"session.x64quantprecision": "1"})


def openvino(path: str, threads: int, streams: int) -> list[Runner]:
    """An ONNX file under OpenVINO; float32, where it would choose bfloat16 itself."""
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
    """timm's network of this name with random weights, fused, in PyTorch's eager mode."""
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
    """No network but float32 [side, side] @ [side, side], as onnxruntime computes it: the most that
    a processor does of multiply-adds in practice. NumPy's product reached 93 % of it on a Xeon.
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
