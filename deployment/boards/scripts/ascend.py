"""Classify images on an Ascend 310 or 310P by ais_bench's InferSession."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pixels
import program


class Board:
    """A compiled network on device 0."""

    def __init__(self, path: str, network: dict[str, Any]):
        try:
            from ais_bench.infer.interface import InferSession
        except ImportError as error:
            raise program.BoardError(
                f"cannot load ais_bench ({error}); install the packages aclruntime and ais_bench "
                "of CANN, and source CANN's set_env.sh"
            ) from None
        self._session = InferSession(0, path)
        shape = self._session.get_inputs()[0].shape
        program.assert_side(shape[2:4], network)
        if shape[0] < 1:
            raise program.BoardError(
                "the compiled network takes batches of any size; compile it for one, as README.txt "
                "says"
            )
        self.batch = shape[0]
        self._network = network

    def prepare(self, crop: np.ndarray) -> np.ndarray:
        """Return the normalized crop, as often as the compiled network has images in a batch."""
        return np.repeat(pixels.normalized(crop, self._network), self.batch, axis=0)

    def run(self, prepared: np.ndarray) -> np.ndarray:
        """Return the logits of the first image."""
        return self._session.infer(feeds=[prepared], mode="static")[0][0]


if __name__ == "__main__":
    sys.exit(program.main(Board))
