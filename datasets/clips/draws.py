"""Random numbers as pure functions of a 64-bit seed, the same on every machine and NumPy version.

All randomness of this package comes in as seeds and leaves through two functions here. They use
the raw output of Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), which
NumPy promises never to change, and not `Generator.integers`, which it does not. The key is (seed,
stream), so that the start of a clip, its crop, and its flip are independent although they come
from one seed.

Cost: about 10 us per call.
"""

from typing import Literal

import numpy as np

Stream = Literal["time", "crop", "flip", "augment", "erase", "mix", "beta"]

_STREAMS: dict[Stream, int] = {
    "time": 0,
    "crop": 1,
    "flip": 2,
    "augment": 3,
    "erase": 4,
    "mix": 5,
    "beta": 6,
}  # append only: numbers are part of every run


def draw_words(seed: int, *, stream: Stream, count: int) -> list[int]:
    """Return `count` independent 64-bit words for `seed` in `stream`."""
    key = np.array([int(seed), _STREAMS[stream]], dtype=np.uint64)
    return [int(word) for word in np.random.Philox(key=key).random_raw(count)]


def below(limit: int, *, word: int) -> int:
    """Map a 64-bit word to 0 .. limit - 1, uniform to within limit / 2**64."""
    assert limit >= 1, limit
    return (word * limit) >> 64


def fraction(word: int) -> float:
    """Map a 64-bit word to a number in [0, 1), one of 2**53 that lie evenly."""
    return (word >> 11) * 2.0**-53


def between(low: float, high: float, *, word: int) -> float:
    """Map a 64-bit word to a number in [low, high)."""
    return low + (high - low) * fraction(word)
