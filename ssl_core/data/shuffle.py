"""The order of an epoch and the random numbers of a sample, as pure functions, so that nothing is stored or replayed.

The permutation is a Feistel network over the pairs (left, right) of a grid of at least n points; a point
outside the first n is encrypted again until it falls inside (Black and Rogaway, "Ciphers with arbitrary finite
domains", CT-RSA 2002).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from math import isqrt

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

ROUNDS = 8


@dataclass(frozen=True, order=True)
class Cursor:
    """A place in the endless stream of global batches: the next one to read.

    Attributes:
        epoch: whole epochs done.
        step: global batches of the current epoch done.
    """

    epoch: int = 0
    step: int = 0

    def __post_init__(self) -> None:
        if self.epoch < 0 or self.step < 0:
            raise ValueError(f"A cursor counts from 0, but this one is epoch {self.epoch}, step {self.step}.")


class Permutation:
    """A permutation of 0..n-1, computed only at the positions that are read: `order[positions]`, both int64."""

    def __init__(self, n: int, key: bytes | str) -> None:
        if n < 1:
            raise ValueError(f"A permutation needs at least one element, not {n}.")
        self._n = n
        rows = isqrt(n - 1) + 1
        self._sides = (rows, -(-n // rows))
        self._keys = words(key, ROUNDS)

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, positions: npt.ArrayLike) -> Ints:
        at = np.asarray(positions, dtype=np.int64)
        if at.size and (at.min() < 0 or at.max() >= self._n):
            raise IndexError(f"A position is outside a permutation of {self._n}.")
        out = self._encrypt(at.ravel())
        outside = np.flatnonzero(out >= self._n)
        while len(outside):
            out[outside] = self._encrypt(out[outside])
            outside = outside[out[outside] >= self._n]
        return out.reshape(at.shape)

    def _encrypt(self, points: Ints) -> Ints:
        rows, columns = self._sides
        right, left = np.divmod(points.astype(np.uint64), np.uint64(rows))
        for number, key in enumerate(self._keys):
            side = np.uint64(rows if number % 2 == 0 else columns)
            left, right = right, (left + scramble(right ^ key)) % side
        return (right * np.uint64(rows) + left).astype(np.int64)


def permutation(n: int, key: bytes | str) -> Permutation:
    """The permutation of 0..n-1 for this key."""
    return Permutation(n, key)


def words(key: bytes | str, count: int) -> Words:
    """[count] 64-bit words from a key, count <= 8, the same on every machine."""
    data = key.encode() if isinstance(key, str) else key
    return np.frombuffer(hashlib.blake2b(data).digest(), dtype="<u8")[:count].astype(np.uint64)


def scramble(x: Words) -> Words:
    """The finaliser of splitmix64, a bijection of 64-bit words (Steele et al., OOPSLA 2014), shifted to 63 bits
    so that a small number may be added without wrapping."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))) >> np.uint64(1)


def draw(ids: Ints, key: bytes | str, limit: Ints) -> Ints:
    """One uniform integer in [0, limit) for every sample id: a function of `key` and the id alone."""
    first, second = words(key, 2)
    random = scramble((ids.astype(np.uint64) ^ first) * np.uint64(0x9E3779B97F4A7C15) + second)
    return ((random >> np.uint64(31)) * limit.astype(np.uint64) >> np.uint64(32)).astype(np.int64)
