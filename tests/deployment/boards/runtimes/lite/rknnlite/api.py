"""onnxruntime behind the calls of rknnlite that the kit's script makes."""

from onnx_board import OnnxBoard


class RKNNLite:
    def load_rknn(self, path):
        self._board = OnnxBoard(path)
        return 0

    def init_runtime(self):
        return 0

    def inference(self, inputs):
        assert inputs[0].flags.c_contiguous
        return [self._board.of_pixels(inputs[0])]
