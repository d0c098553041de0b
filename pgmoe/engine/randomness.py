"""Random numbers that are a function of where they are used, so that an answer can be replayed."""

from __future__ import annotations

import numpy as np


def uniform(seed: int, choice: int, position: int) -> float:
    """The number in [0, 1) by which token `position` of answer `choice` is drawn; a multiple of 2**-53.

    Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) with the key (seed
    modulo 2**64, choice) and the position as counter: no state, and no two answers share a stream.
    """
    key = np.array([seed % 2**64, choice], dtype=np.uint64)
    counter = np.array([position, 0, 0, 0], dtype=np.uint64)
    return (int(np.random.Philox(key=key, counter=counter).random_raw()) >> 11) * 2.0**-53
