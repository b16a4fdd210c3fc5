"""Random numbers by key: the same for an image in whichever process and order it is prepared."""

from __future__ import annotations

import numpy as np


class KeyedRandom:
    """Random number generator that can be set to the beginning of any key's sequence.

    Philox (Salmon et al., SC 2011) computes the numbers from a key and a counter, so that changing
    the key means setting a few words. Seeding a new generator for every image would take a tenth of
    the time in which the image is decoded, cropped and resized.
    """

    def __init__(self) -> None:
        philox = np.random.Philox(0)
        self._philox = philox
        self._state = philox.state
        self._generator = np.random.Generator(philox)

    def at(self, seed: int, epoch: int, image: int, repetition: int) -> np.random.Generator:
        """Return the generator at the beginning of a key's sequence; valid until the next call."""
        state = self._state["state"]
        state["key"][:] = seed, epoch
        state["counter"][2:] = image, repetition  # Philox counts in the first two words
        self._philox.state = self._state
        return self._generator
