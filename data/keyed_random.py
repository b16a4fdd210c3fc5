"""Random numbers by key: the same for an image wherever, and in whichever order, it is prepared."""

from __future__ import annotations

import numpy as np


class KeyedRandom:
    """A generator that can be set to the beginning of any key's numbers.

    They come from Philox, which computes them from a key and a counter (Salmon et al., SC 2011), so
    that another key is a few words to set. To seed a generator anew for every image takes a tenth
    of the time in which the image is decoded, cropped and resized.
    """

    def __init__(self):
        philox = np.random.Philox(0)
        self._philox = philox
        self._state = philox.state
        self._generator = np.random.Generator(philox)

    def at(self, seed: int, epoch: int, image: int, repetition: int) -> np.random.Generator:
        """The generator at the beginning of this key's numbers, until the next call."""
        state = self._state["state"]
        state["key"][:] = seed, epoch
        state["counter"][2:] = image, repetition  # it counts in the first two
        self._philox.state = self._state
        return self._generator
