"""An exponential moving average of a network's weights."""

from __future__ import annotations

from contextlib import AbstractContextManager

from models.cpu.elementwise_operators import blend

import megengine as mge
import megengine.module as M
import numpy as np

from .swap import swapped, tensors


class WeightAverage:
    """Exponential moving average of all weights and batch-norm statistics.

    average <- d average + (1 - d) weights, with d = min(decay, (1 + n) / (10 + n)) after step
    n = 0, 1, ... The second term lets a short run forget its random start, and has no effect late
    in a long one. Source: TensorFlow's ExponentialMovingAverage with num_updates.
    """

    def __init__(self, model: M.Module, decay: float):
        self.model, self.decay = model, decay
        self._average = {
            name: mge.Tensor(tensor.numpy()) for name, tensor in tensors(model).items()
        }

    def update(self, step: int) -> None:
        """Move the average towards the weights after step 0, 1, ..."""
        decay = min(self.decay, (1 + step) / (10 + step))
        kept, rest = (mge.Tensor(value, dtype="float32") for value in (decay, 1 - decay))
        for name, tensor in tensors(self.model).items():
            self._average[name] = blend(self._average[name], kept, tensor, rest)

    def applied(self) -> AbstractContextManager[None]:
        """Return a context within which the network has the average's weights."""
        return swapped(self.model, self._average)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return the average as arrays by name."""
        return {name: tensor.numpy() for name, tensor in self._average.items()}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Go on from a `state_dict` of the same network."""
        self._average = {name: mge.Tensor(state[name]) for name in self._average}
