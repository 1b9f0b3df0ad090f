"""The engine in a thread of its own, and what it writes on its way to the event loop's thread."""

import asyncio
import contextlib
import dataclasses
import threading
from collections import Counter
from collections.abc import Sequence

from absl import logging

from matta_jax.errors import UserError
from matta_jax.serving._completions import Completion, Request, TextStream, Token
from matta_jax.serving._engine import Engine

FAILED = "error"
"""Why a text ended that the engine could not go on with."""


class BusyError(UserError):
    """Too many requests wait."""


class FailedError(UserError):
    """The engine writes no more."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """What was added to a text.

    Attributes:
      number: which of a feed's texts.
      text: that no stop string can take back.
      tokens: the new ones.
      finish_reason: why it ended; None: it goes on.
    """

    number: int
    text: str
    tokens: tuple[Token, ...]
    finish_reason: str | None


class Feed:
    """The texts of one request of a client, as they come. Made in the event loop's thread.

    Attributes:
      completions: its texts.
    """

    def __init__(self) -> None:
        self.completions: list[Completion] = []
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[Piece] = asyncio.Queue()
        self._told: dict[int, tuple[int, int]] = {}
        self._numbers: dict[int, int] = {}

    def expect(self, completion: Completion) -> None:
        """Adds a text, before its engine begins it."""
        self._numbers[completion.number] = len(self.completions)
        self.completions.append(completion)

    def on_change(self, completion: Completion) -> None:
        """Takes what is new, in the engine's thread: there nothing changes meanwhile."""
        num_characters, num_tokens = self._told.get(completion.number, (0, 0))
        stream = completion.stream
        assert stream is not None
        length = len(stream.text) if completion.is_done else stream.safe_length
        piece = Piece(
            self._numbers[completion.number],
            stream.text[num_characters:length],
            tuple(completion.tokens[num_tokens:]),
            completion.finish_reason,
        )
        self._told[completion.number] = (length, len(completion.tokens))
        # A loop that has ended has nobody who waits.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

    async def next(self) -> Piece:
        """What comes next of any of them."""
        return await self._pieces.get()

    def cancel(self) -> None:
        """Gives up all that is not done."""
        for completion in self.completions:
            if not completion.is_done:
                completion.cancel()


@dataclasses.dataclass
class Totals:
    """What the texts of a model came to.

    Attributes:
      reasons: how many ended for each reason.
      seconds: from asking to the end, in sum.
      first_seconds: from asking to the first token, in sum.
      num_begun: texts of `first_seconds`.
    """

    reasons: Counter[str] = dataclasses.field(default_factory=Counter)
    seconds: float = 0.0
    first_seconds: float = 0.0
    num_begun: int = 0


class EngineThread:
    """Steps an engine as long as there is anything to do.

    Args:
      engine: nobody else may step it.
      most_waiting: requests that wait for a slot at most.
    """

    def __init__(self, engine: Engine, most_waiting: int):
        self.engine = engine
        self.most_waiting = most_waiting
        self.has_failed = False
        self.totals: dict[str, Totals] = {spec: Totals() for spec in engine.specs}
        self.num_refused = 0
        self._live: dict[int, Completion] = {}
        self._is_stopped = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begins to step."""
        self._thread.start()

    def stop(self) -> None:
        """Waits until all that was asked for is written, or given up, and ends the thread."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify()
        self._thread.join()

    def submit(self, requests: Sequence[Request]) -> Feed:
        """Asks for texts, all or none of them; in the event loop's thread.

        Raises:
          BusyError: too many requests wait.
          UserError: as `Engine.submit`.
        """
        feed = Feed()
        with self._changed:
            if self.has_failed:
                raise FailedError("the engine has failed; start the server again")
            num_free = self.engine.num_slots - self.engine.num_running
            if self.engine.num_waiting + len(requests) > self.most_waiting + max(num_free, 0):
                self.num_refused += 1
                raise BusyError(
                    f"{self.engine.num_waiting} texts wait already, of {self.most_waiting} that "
                    "may; try again later"
                )
            try:
                for request in requests:
                    self._submit(request, feed)
            except UserError:
                feed.cancel()
                raise
            finally:
                self._changed.notify()
        return feed

    def _submit(self, request: Request, feed: Feed) -> None:
        def on_change(completion: Completion) -> None:
            # The engine may begin it before `submit` has returned.
            with self._changed:
                if completion.is_done:
                    self._count(completion)
            feed.on_change(completion)

        completion = self.engine.submit(request, on_change)
        self._live[completion.number] = completion
        feed.expect(completion)

    def _count(self, completion: Completion) -> None:
        self._live.pop(completion.number, None)
        totals = self.totals[completion.spec]
        assert completion.finish_reason is not None and completion.ended_at is not None
        totals.reasons[completion.finish_reason] += 1
        totals.seconds += completion.ended_at - completion.submitted_at
        if completion.begun_at is not None:
            totals.first_seconds += completion.begun_at - completion.submitted_at
            totals.num_begun += 1

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self.engine.is_busy and not self._is_stopped:
                    self._changed.wait()
                if not self.engine.is_busy:
                    return
            try:
                self.engine.step()
            # Whatever it is, whoever waits for a text must hear of it.
            except Exception as error:
                logging.error("the engine has failed", exc_info=error)
                self._fail()
                return

    def _fail(self) -> None:
        """Ends all texts."""
        with self._changed:
            self.has_failed = True
            live = list(self._live.values())
        for completion in live:
            completion.finish(FAILED)


def spans(stream: TextStream, tokens: Sequence[Token], eos_id: int) -> list[str]:
    """What each token adds to a text; nothing where it is the separator, or half a character."""
    texts = []
    for token in tokens:
        before = len(stream.text)
        if token.id != eos_id:
            stream.push([token.id])
        texts.append(stream.text[before:])
    return texts
