"""An engine that holds the weights of one TA, and writes many texts at once by its sub-models.

Requests join and leave between turns. A turn reads a piece of each text that is new, and draws a
few tokens of all others: of those of one sub-model together.
"""

import collections
import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np

from matta_jax.errors import UserError
from matta_jax.packages import Model
from matta_jax.serving._completions import (
    CANCELLED,
    LENGTH,
    STOP,
    Completion,
    Request,
    Switch,
    Token,
)
from matta_jax.serving._drafts import Draft, drafters_of
from matta_jax.serving._programs import Lane
from matta_jax.serving._prompts import Vocabulary, check_writes
from matta_jax.serving._runner import (
    LONGEST_TURN,
    MOST_TOPS,
    PIECE,
    Proposals,
    Runner,
    tokens_of,
)
from matta_jax.serving._slots import Slot, context_length

# Tokens of a turn for which a request waits.
_SHORT_TURN = 4


@dataclasses.dataclass
class Usage:
    """What a sub-model has done since the start.

    Attributes:
      tokens: that it has written.
      read: that it has read of prompts.
      turns: programs that drew.
      seconds: of all its programs.
      proposed, accepted: tokens of a draft, and how many of them stood.
    """

    tokens: int = 0
    read: int = 0
    turns: int = 0
    seconds: float = 0.0
    proposed: int = 0
    accepted: int = 0


class Engine:
    """Writes texts by sub-models of one set of weights.

    For one thread, but for `submit`, `switch` and what a `Completion` offers.

    Args:
      models: sub-models in place of one run, or one plain model. Their weights are kept in the
        type that they compute in.
      vocabulary: their ids.
      slots: texts that are written at once.
      draft: which of the models proposes tokens to larger ones of the same layers or more; None:
        none does.
      most_waiting: requests that wait for a slot at most.
      turn_seconds: what a turn of a sub-model is to take at most, so that those who read along see
        its tokens come; None: turns are as long as they may be.
      cache_dtype: of keys and values, float32 or bfloat16: half the memory, and other texts than
        those of `generate`.
      takes_weights: whether the engine has the models' weights for itself: they run nowhere else
        then, and memory never holds them twice.

    Raises:
      UserError: a model that writes no text, or models of several runs.
    """

    def __init__(  # noqa: PLR0913  Keyword-only: how texts are written.
        self,
        models: Sequence[Model],
        vocabulary: Vocabulary,
        *,
        slots: int,
        draft: Draft | None = None,
        most_waiting: int = 1024,
        turn_seconds: float | None = None,
        cache_dtype: str = "float32",
        takes_weights: bool = False,
    ):
        model = _check(models)
        if slots < 1:
            raise UserError(f"slots={slots} must be at least 1")
        self.tokenizer = vocabulary.tokenizer
        self.usage: dict[str, Usage] = collections.defaultdict(Usage)
        self._most_waiting = most_waiting
        self._turn_seconds = turn_seconds
        # Of a step of each program, the last time that it ran.
        self._step_seconds: dict[tuple[str, int], float] = {}
        self._lanes = {each.spec: Lane.of(each) for each in models}
        self._draft = draft
        self._drafters = {} if draft is None else drafters_of(models, draft)
        self._runner = Runner(
            model,
            takes_weights=takes_weights,
            slots=slots,
            cache_dtype=cache_dtype,
            end_ids=vocabulary.all_ends,
            allowed=vocabulary.allowed,
        )
        if draft is not None and any(each.has_own_cache for each in self._drafters.values()):
            self._runner.add_draft(self._lanes[draft.spec])
        self._slots = [Slot() for _ in range(slots)]
        self._waiting: collections.deque[Completion] = collections.deque()

    @property
    def specs(self) -> list[str]:
        """The sub-models that it can write by."""
        return list(self._lanes)

    @property
    def limit(self) -> int:
        """Tokens of the longest text that is not read anew."""
        return self._runner.limit

    @property
    def bytes(self) -> tuple[int, int]:
        """Of the weights, and of the caches."""
        return self._runner.bytes

    @property
    def num_waiting(self) -> int:
        """Requests without a slot."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Slots in use. A text that has ended holds none, not even while its end is told."""
        texts = [slot.completion for slot in self._slots]
        return sum(text is not None and not text.is_done for text in texts)

    @property
    def num_slots(self) -> int:
        """Texts that are written at once."""
        return len(self._slots)

    @property
    def is_busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._waiting) or self.num_running > 0

    def submit(
        self, request: Request, on_change: Callable[[Completion], None] | None = None
    ) -> Completion:
        """Asks for a text; returns it, to be written by `step`.

        Args:
          request: what to write.
          on_change: called in the engine's thread after tokens were added, and at the end.

        Raises:
          UserError: an unknown sub-model, a prompt that is too long for a text that does not slide,
            an id that is unknown, or too many requests that wait.
        """
        self._check(request)
        if len(self._waiting) >= self._most_waiting:
            raise UserError(f"{len(self._waiting)} requests wait already; try again later")
        completion = Completion(request, self.tokenizer, on_change)
        self._waiting.append(completion)
        return completion

    def switch(self, completion: Completion, spec: str, *, reuse: bool = False) -> None:
        """Asks that another sub-model go on with a text, from the next turn.

        Args:
          completion: the text.
          spec: of the sub-model.
          reuse: whether it goes on from what is cached, as far as its layers and heads have a
            cache there, though it would have made something else of the text. Else the text is read
            anew, but where both make the same of it.

        Raises:
          UserError: the sub-model is not served.
        """
        self._check_spec(spec)
        completion.switch_to = Switch(spec, reuse)

    def _check_spec(self, spec: str) -> None:
        if spec not in self._lanes:
            raise UserError(
                f"sub-model {spec!r} is not served; name one of {', '.join(self.specs)}"
            )

    def _check(self, request: Request) -> None:
        self._check_spec(request.spec)
        vocab_size = self._runner.vocab_size
        request.sampling.check_vocabulary(vocab_size)
        if not 0 <= min(request.ids) <= max(request.ids) < vocab_size:
            raise UserError(f"a prompt's tokens must be from 0 to {vocab_size - 1}")
        if not 0 <= request.num_top <= MOST_TOPS:
            raise UserError(f"num_top={request.num_top} must be from 0 to {MOST_TOPS}")
        if request.stop and self.tokenizer is None:
            raise UserError("stop strings need a tokenizer, which this engine has not")
        beyond = len(request.ids) + request.num_tokens - (self.limit + 1)
        if beyond > 0 and not request.slides:
            raise UserError(
                f"a prompt of {len(request.ids)} tokens and {request.num_tokens} more are "
                f"{beyond} too many for a model that reads {self.limit}; shorten them"
            )

    def run(self) -> None:
        """Steps until all is written."""
        while self.step():
            pass

    def step(self) -> bool:
        """A turn: frees the slots of what was cancelled, fills them, reads, and draws. Returns
        whether there was anything to do.
        """
        self._drop_cancelled()
        self._switch()
        if not self.is_busy:
            return False
        self._admit()
        for place, slot in enumerate(self._slots):
            if slot.is_reading:
                self._read(place, slot)
        for (spec, drafts), places in self._ready().items():
            self._decode(spec, places, drafts=drafts)
        return True

    def _drop_cancelled(self) -> None:
        for slot in self._slots:
            if slot.completion is not None and slot.completion.is_cancelled:
                slot.completion.finish(CANCELLED)
                slot.completion = None
        for completion in [each for each in tuple(self._waiting) if each.is_cancelled]:
            self._waiting.remove(completion)
            completion.finish(CANCELLED)

    def _switch(self) -> None:
        """Gives texts to the sub-models that are asked to go on with them."""
        for slot in self._slots:
            completion = slot.completion
            if completion is None or completion.switch_to is None:
                continue
            spec, reuse = completion.switch_to
            completion.switch_to = None
            completion.spec = spec
            slot.give(self._lanes[spec], reuse=reuse)
        for completion in tuple(self._waiting):
            if completion.switch_to is not None:
                completion.spec = completion.switch_to.spec
            completion.switch_to = None

    def _admit(self) -> None:
        """Gives waiting texts a free slot each, with what another slot has cached of them."""
        source_S = np.arange(len(self._slots), dtype=np.int32)
        admitted: dict[int, Slot] = {}
        free = [i for i, slot in enumerate(self._slots) if slot.completion is None]
        while free and self._waiting:
            completion = self._waiting[0]
            lane = self._lanes[completion.spec]
            ids = list(completion.request.ids)
            ids = ids[-context_length(len(ids), completion.request.num_tokens, self.limit) :]
            # What it begins with is about to be read for another text: it waits, and copies it.
            if any(slot.will_read(lane, ids) for slot in (*self._slots, *admitted.values())):
                break
            self._waiting.popleft()

            commons = [slot.common(lane, ids) for slot in self._slots]
            source = int(np.argmax(commons))
            # Its own cache before another's, which would be copied; else the one that has least.
            place = min(free, key=lambda i: (-commons[i], self._slots[i].num_read))
            if commons[place] < commons[source]:
                source_S[place] = source
            free.remove(place)
            num_read = max(commons[place], commons[source])
            # A last piece that is not whole is read again, so that pieces begin where they always
            # do: what they give does not depend on who was here before.
            if num_read < len(ids) - 1:
                num_read -= num_read % PIECE
            admitted[place] = Slot(completion, lane, ids, num_read, num_read)

        for place, slot in admitted.items():
            self._slots[place] = slot
        if (source_S != np.arange(len(source_S))).any():
            self._runner.copy(source_S)

    def _read(self, place: int, slot: Slot) -> None:
        assert slot.completion is not None
        start_time = time.perf_counter()
        before = slot.length
        self._runner.read(place, slot)
        usage = self.usage[slot.completion.spec]
        usage.read += slot.length - before
        usage.seconds += time.perf_counter() - start_time

    def _ready(self) -> dict[tuple[str, bool], list[int]]:
        """The slots that a token can be drawn of, by sub-model and whether it has a draft."""
        places: dict[tuple[str, bool], list[int]] = {}
        for i, slot in enumerate(self._slots):
            if not slot.is_ready:
                continue
            assert slot.completion is not None
            request = slot.completion.request
            spec = slot.completion.spec
            drafts = request.drafts and spec in self._drafters
            # A penalty depends on the tokens of a round itself.
            drafts &= request.sampling.repetition_penalty == 1
            places.setdefault((spec, drafts), []).append(i)
        return places

    def _decode(self, spec: str, places: list[int], *, drafts: bool) -> None:
        """Draws tokens of the slots of a sub-model."""
        start_time = time.perf_counter()
        count = self._drafters[spec].choose() if drafts else 0
        steps = self._steps(spec, places, count)
        draft = self._proposals(spec, places, count) if count else None
        drawn = self._runner.draw(self._lanes[spec], self._slots, places, steps, draft)

        usage = self.usage[spec]
        usage.turns += 1
        seconds = time.perf_counter() - start_time
        usage.seconds += seconds
        self._step_seconds[spec, count] = seconds / steps
        if count:
            accepted = int(drawn.is_drafted.sum())
            usage.proposed += int(drawn.proposed.sum())
            usage.accepted += accepted
            self._drafters[spec].learn(int(drawn.tried.sum()), accepted)
        for i in places:
            tokens = tokens_of(drawn, i)
            usage.tokens += len(tokens)
            if draft is not None and draft.has_own_cache:
                self._slots[i].draft_length = self._slots[i].length + len(tokens)
            self._add(self._slots[i], tokens)

    def _proposals(self, spec: str, places: list[int], count: int) -> Proposals:
        """Of a turn, after the draft has read what it had not."""
        assert self._draft is not None
        lane, has_own_cache = self._lanes[self._draft.spec], self._drafters[spec].has_own_cache
        if has_own_cache:
            for i in places:
                self._runner.read_for_draft(lane, i, self._slots[i])
        return Proposals(lane, count, has_own_cache)

    def _steps(self, spec: str, places: list[int], count: int) -> int:
        """Of a turn: tokens of a row, or rounds of a draft that proposes `count`."""
        waits = bool(self._waiting) or any(slot.is_reading for slot in self._slots)
        steps = _SHORT_TURN if waits else LONGEST_TURN
        steps = min(steps, max(self._slots[i].remaining(self.limit) for i in places))
        steps = -(-steps // (count + 1))
        seconds = self._step_seconds.get((spec, count))
        if self._turn_seconds is None or not seconds:
            return steps
        return max(1, min(steps, int(self._turn_seconds / seconds)))

    def _add(self, slot: Slot, tokens: list[Token]) -> None:
        """Adds what was drawn to a text, and frees its slot at the end."""
        completion = slot.completion
        assert completion is not None
        request = completion.request
        slot.ids += [token.id for token in tokens]
        slot.length += len(tokens)
        reason = None
        if tokens[-1].id in self._runner.end_ids:
            reason = STOP
        elif len(completion.tokens) + len(tokens) >= request.num_tokens:
            reason = LENGTH
        completion.add(tokens, reason=reason, end_ids=self._runner.end_ids)
        if completion.is_done:
            slot.completion = None
        elif slot.length >= self.limit:
            remaining = request.num_tokens - len(completion.tokens)
            slot.ids = slot.ids[-context_length(len(slot.ids), remaining, self.limit) :]
            slot.length = slot.num_read = slot.draft_length = 0


def _check(models: Sequence[Model]) -> Model:
    """The first of an engine's models. Raises UserError where they do not go together."""
    model = models[0]
    if any(each.params is not model.params for each in models):
        raise UserError(
            "an engine serves the sub-models of one run, or one model; name one checkpoint, or one "
            "model"
        )
    if any(each.compute_dtype != model.compute_dtype for each in models):
        raise UserError("an engine computes in one type; give all of its models one compute_dtype")
    for each in models:
        check_writes(each)
    return model
