"""The slots of an engine: which text stands in each, and what of it is cached."""

import dataclasses
from collections.abc import Sequence

from matta_jax.serving._completions import Completion
from matta_jax.serving._programs import Lane


@dataclasses.dataclass
class Slot:
    """A row of the caches.

    Attributes:
      completion: whose text it holds; None: it is free, and its cache may be copied by others.
      lane: the sub-model that its cache is of.
      ids: the tokens of the text that the cache is of: of the prompt, and what was added.
      num_read: how many of them were read in pieces, from the first on.
      length: how many are cached.
      draft_length: how many a draft has in caches of its own.
    """

    completion: Completion | None = None
    lane: Lane | None = None
    ids: list[int] = dataclasses.field(default_factory=list)
    num_read: int = 0
    length: int = 0
    draft_length: int = 0

    @property
    def is_reading(self) -> bool:
        """Whether tokens before the last one are not cached yet."""
        return self.completion is not None and self.length < len(self.ids) - 1

    @property
    def is_ready(self) -> bool:
        """Whether its next token can be drawn."""
        return self.completion is not None and not self.is_reading

    def remaining(self, limit: int) -> int:
        """How many tokens may be drawn before its text ends, or is read anew."""
        assert self.completion is not None
        to_end = self.completion.request.num_tokens - len(self.completion.tokens)
        return min(to_end, limit - self.length)

    def give(self, lane: Lane, *, reuse: bool) -> None:
        """Gives its text to another sub-model; `reuse` as of `Completion.switch`."""
        assert self.lane is not None
        has_cache = lane.sub_model.within(self.lane.sub_model)
        goes_on = lane.begins(self.lane) or (reuse and has_cache)
        self.lane = lane
        # What others copy is what a model has read by itself.
        self.num_read = 0
        if not goes_on:
            self.length = self.draft_length = 0

    def common(self, lane: Lane, ids: Sequence[int]) -> int:
        """How many of the first tokens it has read as this lane would."""
        if self.lane != lane:
            return 0
        limit = min(self.num_read, len(ids) - 1)
        for i in range(limit):
            if self.ids[i] != ids[i]:
                return i
        return limit

    def will_read(self, lane: Lane, ids: Sequence[int]) -> bool:
        """Whether it is about to read all that a text begins with."""
        return self.is_reading and self.lane == lane and self.ids[: len(ids) - 1] == ids[:-1]


def context_length(length: int, remaining: int, limit: int) -> int:
    """How many of the last tokens are read: all, or where the text outgrows the model's sequences
    the last half of one, or as many as leave room for what remains.
    """
    # The last token is drawn, but not read.
    if length + remaining <= limit + 1:
        return length
    return min(length, max(limit // 2, limit + 1 - remaining, 1))
