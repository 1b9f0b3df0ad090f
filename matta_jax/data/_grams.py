"""Near-duplicates: held-out documents whose text stands in documents that are trained on.

Of all stretches of 64 bytes a fixed part is sampled, by their hash alone: what two texts have in
common is sampled in both.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from matta_jax import storage

_GRAM_BYTES = 64
_SAMPLED = np.uint64(128)
"""One of so many."""
_FACTOR = 0x9E3779B97F4A7C15
_PIECE = 2**18
"""Bytes that are hashed at once."""
_NEAR = 0.5


@dataclasses.dataclass(frozen=True)
class Grams:
    """Sampled stretches of documents.

    Attributes:
      hashes: of each [n], uint64; of a document none stands twice.
      documents: whose it is [n], a number, uint32.
    """

    hashes: np.ndarray
    documents: np.ndarray


class GramSampler:
    """Samples the stretches of documents, one after the other."""

    def __init__(self) -> None:
        self._hashes: list[np.ndarray] = []

    def add(self, text: str) -> None:
        """Samples the next document."""
        self._hashes.append(sampled_grams(text.encode()))

    def grams(self) -> Grams:
        """Of all documents so far."""
        counts = [len(hashes) for hashes in self._hashes]
        hashes = np.concatenate([np.zeros(0, np.uint64), *self._hashes])
        return Grams(hashes, np.repeat(np.arange(len(counts), dtype=np.uint32), counts))


def write_grams(path: storage.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays of stretches, by name. Raises OSError."""
    named: dict[str, Any] = dict(arrays)
    with storage.new_file(path) as beside, storage.open_new(beside) as file:
        np.savez(file, **named)


def read_grams(path: storage.Path, hashes: str, documents: str | None = None) -> Grams:
    """Reads stretches by the names of their arrays; without `documents`, those of all are taken for
    those of one. Raises OSError, or ValueError or KeyError for another file.
    """
    with np.load(storage.in_memory(storage.read_bytes(path)), allow_pickle=False) as arrays:
        values = arrays[hashes]
        owners = np.zeros(len(values), np.uint32) if documents is None else arrays[documents]
        return Grams(values, owners)


def near_duplicates(held_out: Grams, training: Iterable[Grams]) -> int:
    """How many held-out documents have at least half of their sampled stretches in what is trained
    on.
    """
    hashes, owners = np.unique(held_out.hashes, return_inverse=True)
    is_found = np.zeros(len(hashes), bool)
    for grams in training:
        is_found |= np.isin(hashes, grams.hashes)
    counts = np.bincount(held_out.documents)
    shared = np.bincount(held_out.documents, is_found[owners])
    return int(np.sum((shared > 0) & (shared >= _NEAR * counts)))


def sampled_grams(data: bytes) -> np.ndarray:
    """The hashes of the sampled stretches of a text, sorted, each once."""
    # Pieces overlap by what a stretch has beside its first byte.
    pieces = [
        _sampled(data[start : start + _PIECE + _GRAM_BYTES - 1])
        for start in range(0, max(len(data) - _GRAM_BYTES + 1, 0), _PIECE)
    ]
    return np.unique(np.concatenate([np.zeros(0, np.uint64), *pieces]))


def _sampled(data: bytes) -> np.ndarray:
    """A polynomial in an odd number, whose powers have inverses modulo 2^64: all stretches are
    differences of one running sum.
    """
    powers, inverses = _powers()
    values = np.frombuffer(data, np.uint8).astype(np.uint64) + np.uint64(1)
    sums = np.cumsum(values * powers[: len(values)], dtype=np.uint64)
    stretches = sums[_GRAM_BYTES - 1 :].copy()
    stretches[1:] -= sums[:-_GRAM_BYTES]
    hashes = stretches * inverses[: len(stretches)]
    # The low bits of a polynomial are poor: they decide what is sampled after they are mixed.
    hashes ^= hashes >> np.uint64(31)
    hashes *= np.uint64(_FACTOR)
    hashes ^= hashes >> np.uint64(29)
    return hashes[hashes % _SAMPLED == 0]


@functools.cache
def _powers() -> tuple[np.ndarray, np.ndarray]:
    count = _PIECE + _GRAM_BYTES
    inverse = pow(_FACTOR, -1, 2**64)
    factors = np.full((2, count), [[_FACTOR], [inverse]], np.uint64)
    factors[:, 0] = 1
    powers, inverses = np.cumprod(factors, axis=1, dtype=np.uint64)
    return powers, inverses
