"""A request for text, and what has been written of it so far."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from matta_jax.errors import UserError
from matta_jax.serving._sampling import Sampling
from matta_jax.tokenizers import Tokenizer

_MOST_TOKENS = 2**24
_DEFAULT = Sampling()

STOP, LENGTH, CANCELLED = "stop", "length", "cancelled"
"""Why a text ended: at the separator or a stop string, at its number of tokens, by its reader."""

_HALF_CHARACTER = "\ufffd"
# No character has more bytes, so that a longer run of halves is no character that is to come.
_MOST_HALVES = 3


@dataclasses.dataclass(frozen=True)
class Request:
    """What to write.

    Attributes:
      ids: of the prompt, at least one.
      spec: of the sub-model that writes.
      num_tokens: most tokens to add.
      sampling: how they are drawn.
      index: which sample of the seed it is.
      stop: strings that end the text, and are not in it.
      num_top: for how many of the likeliest tokens of each step log-probabilities are told.
      slides: whether a text that outgrows the model's sequences goes on from its last half of one,
        read anew; else it ends there.
      drafts: whether a draft model proposes tokens, where the engine has one.
    """

    ids: tuple[int, ...]
    spec: str
    num_tokens: int
    sampling: Sampling = _DEFAULT
    index: int = 0
    stop: tuple[str, ...] = ()
    num_top: int = 0
    slides: bool = True
    drafts: bool = True

    def __post_init__(self) -> None:
        if not self.ids:
            raise UserError("a prompt of no tokens: the separator begins a document")
        if self.num_tokens < 1:
            raise UserError(f"num_tokens={self.num_tokens} must be at least 1")
        if self.num_tokens > _MOST_TOKENS:
            raise UserError(f"num_tokens={self.num_tokens} must be at most {_MOST_TOKENS}")
        if any(not stop for stop in self.stop):
            raise UserError("stop has an empty string, which stands in every text; leave it out")


class TextStream:
    """The text of tokens as they come: what is said of it is not taken back.

    Args:
      tokenizer: of the model.
      stop: strings that end the text.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        self._tokenizer = tokenizer
        self._stop = stop
        self._ids: list[int] = []
        # Tokens before `_told_ids` are in `_text`; they are decoded again from `_context_ids` on,
        # since a tokenizer may write a token otherwise at the beginning of a text.
        self._context_ids = 0
        self._told_ids = 0
        self._text = ""
        self.has_stopped = False

    def push(self, ids: Sequence[int], *, is_last: bool = False) -> int | None:
        """Adds tokens; returns of how many of them the text ends at a stop string, if it does.

        Args:
          ids: the new tokens.
          is_last: whether no more will come.
        """
        before = (len(self._ids), self._context_ids, self._told_ids, self._text)
        self._ids += ids
        self._add(is_last)
        if not self._cut():
            return None

        # One by one now, to see which of them ends it: seldom, and most of the time is decoding's.
        num_ids, self._context_ids, self._told_ids, self._text = before
        del self._ids[num_ids:]
        self.has_stopped = False
        for count, token in enumerate(ids, start=1):
            self._ids.append(token)
            self._add(is_last and count == len(ids))
            if self._cut():
                return count
        return len(ids)

    def _add(self, is_last: bool) -> None:
        """Adds what the tokens say since the last time, but for a character that is not whole."""
        before = self._decode(self._context_ids, self._told_ids)
        now = self._decode(self._context_ids, len(self._ids))
        ending = len(now) - len(now.rstrip(_HALF_CHARACTER))
        if 0 < ending <= _MOST_HALVES and not is_last:
            return
        self._text += now[len(before) :]
        self._context_ids, self._told_ids = self._told_ids, len(self._ids)

    def _decode(self, start: int, stop: int) -> str:
        return self._tokenizer.decode(np.array(self._ids[start:stop], np.int32))

    def _cut(self) -> bool:
        places = [place for stop in self._stop if (place := self._text.find(stop)) >= 0]
        if places:
            self._text = self._text[: min(places)]
            self.has_stopped = True
        return self.has_stopped

    @property
    def text(self) -> str:
        """All of it so far."""
        return self._text

    @property
    def safe_length(self) -> int:
        """How many of its characters no stop string to come can take back."""
        if self.has_stopped:
            return len(self._text)
        for start in range(max(0, len(self._text) - self._longest_stop), len(self._text)):
            if any(stop.startswith(self._text[start:]) for stop in self._stop):
                return start
        return len(self._text)

    @property
    def _longest_stop(self) -> int:
        return max((len(stop) for stop in self._stop), default=0)


@dataclasses.dataclass(frozen=True)
class Token:
    """A token of a text.

    Attributes:
      id: of it.
      log_p: natural logarithm of its probability under the model, before any setting.
      top: the likeliest tokens there and theirs, falling.
      is_drafted: whether a draft model proposed it.
    """

    id: int
    log_p: float
    top: tuple[tuple[int, float], ...] = ()
    is_drafted: bool = False


class Switch(NamedTuple):
    """Which sub-model is to go on with a text, and whether from what is cached."""

    spec: str
    reuse: bool


_numbers = itertools.count()


class Completion:
    """A request, and its text so far. An engine writes it; other threads may read it.

    Args:
      request: what to write.
      tokenizer: of the text; None: there are tokens alone.
      on_change: called in the engine's thread after tokens were added, and at the end.
    """

    def __init__(
        self,
        request: Request,
        tokenizer: Tokenizer | None = None,
        on_change: Callable[["Completion"], None] | None = None,
    ):
        self.number = next(_numbers)
        self.request = request
        self.spec = request.spec
        self.tokens: list[Token] = []
        self.stream = TextStream(tokenizer, request.stop) if tokenizer else None
        self.finish_reason: str | None = None
        self.is_cancelled = False
        self.switch_to: Switch | None = None
        self.submitted_at = time.perf_counter()
        self.begun_at: float | None = None
        self.ended_at: float | None = None
        self._on_change = on_change

    @property
    def is_done(self) -> bool:
        """Whether no more will come."""
        return self.finish_reason is not None

    @property
    def ids(self) -> list[int]:
        """The tokens that were added."""
        return [token.id for token in self.tokens]

    @property
    def text_ids(self) -> list[int]:
        """The prompt's tokens, and those that were added."""
        return [*self.request.ids, *self.ids]

    @property
    def text(self) -> str:
        """What was added, without what ended it."""
        assert self.stream is not None, "an engine without a tokenizer gives tokens alone"
        return self.stream.text

    def cancel(self) -> None:
        """Asks that no more be written; the engine frees its slot before its next turn."""
        self.is_cancelled = True

    def add(self, tokens: Sequence[Token], *, reason: str | None, end_ids: Sequence[int]) -> None:
        """Adds tokens of a turn.

        Args:
          tokens: new ones.
          reason: why the text ends with them, if it does.
          end_ids: that end a text, and are none of it.
        """
        if self.begun_at is None and tokens:
            self.begun_at = time.perf_counter()
        tokens = list(tokens)
        if self.stream is not None:
            ids = [token.id for token in tokens if token.id not in end_ids]
            end = self.stream.push(ids, is_last=reason is not None)
            if end is not None:
                del tokens[end:]
                reason = STOP
        self.tokens += tokens
        if reason is not None:
            self.finish(reason)
        elif tokens:
            self._tell()

    def finish(self, reason: str) -> None:
        """Ends it."""
        self.finish_reason = reason
        self.ended_at = time.perf_counter()
        self._tell()

    def _tell(self) -> None:
        if self._on_change is not None:
            self._on_change(self)
