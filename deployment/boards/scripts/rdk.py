"""Classify images on an RDK X5 or X3: its runtime's calls, as D-Robotics documents them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pixels
import program


class _Hbm:
    """The runtime hbm_runtime, which comes with RDK OS 3.5 and later."""

    def __init__(self, runtime: Any, path: str):
        self._model = runtime.HB_HBMRuntime(path)
        self._name = self._model.model_names[0]
        self._input = self._model.input_names[self._name][0]
        self.shape = self._model.input_shapes[self._name][self._input]

    def run(self, packed: np.ndarray) -> np.ndarray:
        height, width = _sides(self.shape)
        packed = packed.reshape(1, height * 3 // 2, width, 1)
        outputs = self._model.run({self._name: {self._input: packed}})[self._name]
        name, values = next(iter(outputs.items()))
        return self._in_float(name, np.squeeze(values))

    def _in_float(self, name: str, values: np.ndarray) -> np.ndarray:
        """Return an output in float: without Dequantize at its end, the network has integers."""
        if values.dtype.kind == "f":
            return values
        quants = self._model.output_quants[self._name][name]
        scale = np.asarray(quants.scale, np.float32).reshape(-1)
        if scale.size not in (1, values.size) or np.any(quants.zero_point):
            return values  # `Board.run` refuses them
        return values * scale


class _Dnn:
    """The runtime pyeasy_dnn of the package hobot_dnn."""

    def __init__(self, runtime: Any, path: str):
        self._model = runtime.load(path)[0]
        self.shape = self._model.inputs[0].properties.shape

    def run(self, packed: np.ndarray) -> np.ndarray:
        return np.squeeze(self._model.forward(packed)[0].buffer)


def _sides(shape: Sequence[int]) -> Sequence[int]:
    """Return (height, width) of an NHWC or NCHW shape."""
    return shape[1:3] if shape[3] == 3 else shape[2:4]


_RUNTIMES: Sequence[tuple[str, type[_Hbm] | type[_Dnn]]] = (  # in order of preference
    ("hbm_runtime", _Hbm),
    ("hobot_dnn.pyeasy_dnn", _Dnn),
    ("hobot_dnn_rdkx5.pyeasy_dnn", _Dnn),
)


class Board:
    """A compiled network under the runtime that is installed."""

    batch = 1

    def __init__(self, path: str, network: dict[str, Any]):
        for module, kind in _RUNTIMES:
            try:
                runtime = importlib.import_module(module)
            except ModuleNotFoundError:
                continue
            except ImportError as error:  # such as of a library that it needs
                raise program.BoardError(f"cannot load {module}: {error}") from None
            self._model = kind(runtime, path)
            break
        else:
            raise program.BoardError(
                "neither hbm_runtime nor hobot_dnn is installed; run this on the board"
            )
        program.assert_side(_sides(self._model.shape), network)

    def prepare(self, crop: np.ndarray) -> np.ndarray:
        """Return the crop as NV12."""
        return pixels.nv12(crop)

    def run(self, prepared: np.ndarray) -> np.ndarray:
        """Return the logits."""
        logits = self._model.run(prepared)
        if logits.dtype.kind != "f":
            raise program.BoardError(
                f"the compiled network returns {logits.dtype}, whose scale the runtime does not "
                "tell; leave Dequantize out of remove_node_type in the mapper's settings, and "
                "compile it again"
            )
        return logits


if __name__ == "__main__":
    sys.exit(program.main(Board, threads=(1, 4)))
