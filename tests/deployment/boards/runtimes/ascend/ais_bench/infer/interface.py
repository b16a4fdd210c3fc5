"""onnxruntime behind the calls of ais_bench's InferSession that the kit's script makes."""

from types import SimpleNamespace as Namespace

import numpy as np
from onnx_board import OnnxBoard


class InferSession:
    def __init__(self, device_id, model_path):
        assert device_id == 0
        self._board = OnnxBoard(model_path)

    def get_inputs(self):
        return [Namespace(name="actual_input_1", shape=[2, *self._board.shape[1:]])]

    def infer(self, feeds, mode):
        assert mode == "static" and feeds[0].dtype == np.float32
        assert list(feeds[0].shape) == self.get_inputs()[0].shape
        return [self._board.of_values(feeds[0])]
