"""onnxruntime behind the calls of hbm_runtime that the kit's script makes."""

from onnx_board import OnnxBoard


class HB_HBMRuntime:
    def __init__(self, path):
        self._board = OnnxBoard(path)
        self.model_names = ["net"]
        self.input_names = {"net": ["data"]}
        self.input_shapes = {"net": {"data": self._board.shape}}

    def run(self, inputs):
        packed = inputs["net"]["data"]
        side = self._board.shape[2]
        assert packed.shape == (1, side * 3 // 2, side, 1)
        return {"net": {"output": self._board.of_nv12(packed)[:, :, None, None]}}
