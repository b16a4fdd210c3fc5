"""Classify images on a board with a Rockchip NPU by rknn-toolkit-lite2."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pixels
import program


class Board:
    """A compiled network, which normalizes its pixels itself."""

    batch = 1

    def __init__(self, path: str, network: dict[str, Any]):
        try:
            from rknnlite.api import RKNNLite
        except ImportError as error:
            raise program.BoardError(
                f"cannot load rknnlite ({error}); install the package rknn-toolkit-lite2 on the "
                "board"
            ) from None
        self._lite = RKNNLite()
        self._network = network
        if self._lite.load_rknn(path) != 0:
            raise program.BoardError(f"the runtime cannot load {path}; convert it again")
        if self._lite.init_runtime() != 0:
            raise program.BoardError(
                f"the runtime cannot run {path}; convert it for this board by --target"
            )

    def prepare(self, crop: np.ndarray) -> np.ndarray:
        """Return the pixels in the network's order of colours, uint8 [1, size, size, 3]."""
        return pixels.in_network_order(crop, self._network)[None]

    def run(self, prepared: np.ndarray) -> np.ndarray:
        """Return the logits."""
        outputs = self._lite.inference(inputs=[prepared])
        if outputs is None:
            raise program.BoardError("the runtime returned nothing; its message is above")
        return outputs[0]


if __name__ == "__main__":
    sys.exit(program.main(Board))
