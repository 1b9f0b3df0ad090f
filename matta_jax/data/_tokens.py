"""Token streams: arrays, or what reads like one."""

import bisect
import itertools
from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Tokens(Protocol):
    """A token stream: an array, or what reads like one from the disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice, /) -> np.ndarray: ...


class JoinedTokens:
    """Several streams, one after the other.

    Args:
      streams: of one type; at least one.
    """

    def __init__(self, streams: Sequence[Tokens]):
        self._streams = streams
        # Where each begins, and the last ends.
        self._starts = list(itertools.accumulate(map(len, streams), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: slice) -> np.ndarray:
        """Returns the tokens [n] of a slice without a step. Raises what its streams do."""
        start, stop, step = index.indices(len(self))
        if step != 1:
            raise IndexError("tokens are read in their order, one after the other")
        number = bisect.bisect_right(self._starts, start) - 1
        pieces = []
        for first, stream in zip(self._starts[number:], self._streams[number:], strict=False):
            pieces.append(np.asarray(stream[max(start - first, 0) : max(stop - first, 0)]))
            if first + len(stream) >= stop:
                break
        # Of no token, one stream tells the type.
        return np.concatenate(pieces) if pieces else np.asarray(self._streams[0][:0])


class LaterTokens:
    """A stream without its first tokens.

    Args:
      tokens: the stream.
      start: how many are left out.
    """

    def __init__(self, tokens: Tokens, start: int):
        self._tokens = tokens
        self._start = start

    def __len__(self) -> int:
        return len(self._tokens) - self._start

    def __getitem__(self, index: slice) -> np.ndarray:
        start, stop, _ = index.indices(len(self))
        return self._tokens[start + self._start : max(stop, start) + self._start]
