"""onnxruntime behind the calls of pyeasy_dnn that the kit's script makes."""

from types import SimpleNamespace as Namespace

from onnx_board import OnnxBoard


class _Model:
    def __init__(self, path):
        self._board = OnnxBoard(path)
        _, _, height, width = self._board.shape
        properties = Namespace(shape=(1, height, width, 3), layout="NHWC", dtype="uint8")
        self.inputs = (Namespace(name="data", properties=properties),)

    def forward(self, packed):
        assert packed.ndim == 1
        return [Namespace(buffer=self._board.of_nv12(packed)[:, :, None, None])]


def load(path):
    return [_Model(path)]
