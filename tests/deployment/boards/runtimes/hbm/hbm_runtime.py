"""onnxruntime behind the calls of hbm_runtime that the kit's script makes."""

import os
from types import SimpleNamespace as Namespace

import numpy as np
from onnx_board import OnnxBoard

SCALE = 2.0**-16  # of the integers that $SCALED asks for


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
        logits = self._board.of_nv12(packed)[:, :, None, None]
        if "SCALED" in os.environ:
            logits = np.round(logits / self._scales()[:, None, None]).astype(np.int32)
        return {"net": {"output": logits}}

    @property
    def output_quants(self):
        scale = self._scales() if "SCALED" in os.environ else np.empty(0)
        quants = Namespace(scale=scale, zero_point=np.zeros(0), quant_type="SCALE", axis=1)
        return {"net": {"output": quants}}

    def _scales(self):
        """A scale for each class."""
        return SCALE * (1 + np.arange(self._board.session.get_outputs()[0].shape[1]))
