"""Log-likelihoods of given continuations: what LAMBADA, SAT Math and the evaluation harness ask
for.

Requests go by in order of their length, in batches of a few lengths, so that a model compiles once
for each.

Shape letters: B batch, T sequence, M target tokens, D d_model, V vocab.
"""

import dataclasses
import unicodedata
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from matta_jax.errors import UserError, shorten
from matta_jax.models import logits
from matta_jax.nesting import Tree
from matta_jax.packages import Model
from matta_jax.reporting import progress
from matta_jax.sharding import map_rows, place_rows, row_shards
from matta_jax.tokenizers import Tokenizer

# Examples that a warning names.
_MOST_NAMED = 10


@dataclasses.dataclass(frozen=True)
class Request:
    """A continuation to score: `target` after `context`, both token ids."""

    context: np.ndarray
    target: np.ndarray


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """What a model says of a request.

    Attributes:
      log_prob: of the target, in nats, summed over its tokens.
      is_top: of each target token, whether it is the most likely one.
      truncated: whether tokens at the start were left out, as the whole is longer than the model
        reads.
    """

    log_prob: float
    is_top: np.ndarray
    truncated: bool


def encode_request(tokenizer: Tokenizer, context: str, target: str) -> Request:
    """Returns the request of two texts, tokenised as one, as the evaluation harness does.

    White space at the end of the context goes to the target. An empty context is the start of
    a document.
    """
    stripped = context.rstrip()
    target = context[len(stripped) :] + target
    context_ids = np.asarray(tokenizer.encode(stripped), np.int32)
    ids = np.asarray(tokenizer.encode(stripped + target), np.int32)
    target_ids = ids[len(context_ids) :]
    # Where a text has a start of its own, models have read none without it.
    if not len(context_ids) or tokenizer.start_id != tokenizer.eos_id:
        context_ids = np.insert(context_ids, 0, tokenizer.start_id)
    return Request(context_ids, target_ids)


def checked_request(tokenizer: Tokenizer, context: str, target: str) -> tuple[Request, str | None]:
    """Returns the request of two texts, and why its target cannot be scored, as `lost_part` does;
    also of what the tokenizer refuses.
    """
    try:
        request = encode_request(tokenizer, context, target)
        return request, lost_part(tokenizer, request, target)
    except UserError as error:
        # A vocabulary without a token for the unknown takes not every text.
        nothing = np.array([tokenizer.start_id], np.int32)
        return Request(nothing, nothing), f"cannot be encoded with its context ({error})"


def lost_part(tokenizer: Tokenizer, request: Request, target: str) -> str | None:
    """Returns why a target cannot be scored: its tokens do not hold all of it. None where they do.

    White space and the form of letters do not count: many tokenizers change these.
    """
    # Nothing is lost of no text.
    if not target.strip():
        return None
    if not len(request.target) or not len(tokenizer.encode(target.strip())):
        return "has no tokens"
    ids = tokenizer.encode(target)
    if tokenizer.survives(target, ids):
        return None
    decoded = tokenizer.decode(ids)
    # A token for the unknown stands for no byte.
    has_unknown = tokenizer.num_bytes(ids) < len(decoded.encode())
    if has_unknown or len(_letters(decoded)) < len(_letters(target)):
        return "loses characters in its tokens"
    return None


def _letters(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split())


def warn_of_left_out(what: str, reasons: dict[str, str], num_scored: int) -> None:
    """Names examples that are left out, each with its reason, in one line. Raises UserError when
    none is left.
    """
    if not reasons:
        return
    named = [f"{example} ({reason})" for example, reason in list(reasons.items())[:_MOST_NAMED]]
    if len(reasons) > _MOST_NAMED:
        named.append(f"and {len(reasons) - _MOST_NAMED} more")
    examples = ", ".join(named)
    if not num_scored:
        raise UserError(f"{what}: no example can be scored: {examples}; use another tokenizer")
    total = num_scored + len(reasons)
    logging.warning("%s: %d of %d examples are left out: %s", what, len(reasons), total, examples)


def warn_of_lossy(what: str, tokenizer: Tokenizer, texts: Sequence[str], effect: str) -> None:
    """Counts the texts that do not survive encode and decode, and names the first and the effect,
    in one line.
    """
    lossy = [text for text in texts if not tokenizer.survives(text, tokenizer.encode(text))]
    if not lossy:
        return
    logging.warning(
        "%s: %d of %d texts do not survive encode and decode (the first: %s): %s",
        what,
        len(lossy),
        len(texts),
        shorten(lossy[0]),
        effect,
    )


def likelihoods(
    model: Model, requests: Sequence[Request], *, batch_size: int = 16, label: str = "scoring"
) -> list[Likelihood]:
    """Scores requests, in their order; the longest batch sets the memory, logits exist at target
    tokens alone.

    A request longer than the sequences of the model's training loses tokens at its start.

    Args:
      model: an extracted model, or a sub-model in place.
      requests: what to score.
      batch_size: requests of a batch, on each of the devices that split its rows.
      label: of the progress bar.
    """
    limit = model.config.data.seq_len
    sequences = [_Sequence.of(request, limit) for request in requests]
    # The longest first: where memory does not suffice, that shows at once.
    order = sorted(range(len(requests)), key=lambda i: -len(sequences[i].tokens))
    longest_target = max((sequence.num_targets for sequence in sequences), default=1)
    num_targets = _bucket(longest_target, limit)
    program = _program(model)
    batch_size *= row_shards(model.mesh)

    results: dict[int, Likelihood] = {}
    starts = range(0, len(order), batch_size)
    title = f"{label} {model.spec}"
    for start in progress(starts, desc=title, unit="batches"):
        indices = order[start : start + batch_size]
        batch = [sequences[i] for i in indices]
        length = _bucket(max(len(sequence.tokens) - 1 for sequence in batch), limit)
        arrays = _filled(batch, batch_size=batch_size, length=length, num_targets=num_targets)

        placed = place_rows(arrays, model.mesh)
        log_probs, is_top = jax.device_get(program(model.params, placed))
        for row, i in enumerate(indices):
            count = sequences[i].num_targets
            total = float(np.sum(log_probs[row, :count], dtype=np.float64))
            results[i] = Likelihood(total, is_top[row, :count], sequences[i].truncated)
    return [results[i] for i in range(len(requests))]


@dataclasses.dataclass(frozen=True)
class _Sequence:
    """A request as a model reads it.

    Attributes:
      tokens: context and target; the last is a label alone.
      num_targets: how many of the last tokens are scored.
      truncated: whether tokens at the start were left out.
    """

    tokens: np.ndarray
    num_targets: int
    truncated: bool

    @classmethod
    def of(cls, request: Request, limit: int) -> "_Sequence":
        """The last tokens of a request, for a model that reads `limit` of them."""
        joined = np.concatenate([request.context, request.target])
        tokens = joined[-(limit + 1) :]
        # The first token has nothing before it that would predict it.
        num_targets = min(len(request.target), len(tokens) - 1)
        return cls(tokens, num_targets, truncated=len(joined) > limit + 1)


def _program(model: Model) -> Callable[..., tuple[jax.Array, ...]]:
    """The compiled function of weights and what `_filled` returns; it returns the targets'
    log-probabilities [B, M], and whether each is the most likely token.
    """

    @jax.jit
    def program(params: Tree, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, ...]:
        tokens_BT = batch["tokens"]
        hidden_BTD = model.apply(params, {"tokens": tokens_BT}).reshape(*tokens_BT.shape, -1)
        table_VD = model.head(params)

        def of_row(row: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
            hidden_TD, places_M, labels_M = row
            z_MV = logits(hidden_TD[places_M], table_VD)
            z_label_M = jnp.take_along_axis(z_MV, labels_M[:, None], axis=-1)[:, 0]
            log_probs_M = z_label_M - jax.nn.logsumexp(z_MV, axis=-1)
            is_top_M = jnp.argmax(z_MV, axis=-1) == labels_M
            return log_probs_M, is_top_M

        # Row by row, so that logits exist of one at a time.
        return map_rows(of_row, (hidden_BTD, batch["places"], batch["labels"]), model.mesh)

    return program


def _filled(
    batch: Sequence[_Sequence], *, batch_size: int, length: int, num_targets: int
) -> dict[str, np.ndarray]:
    """The `tokens` [B, T] of a batch, and `places` and `labels` [B, M] of its targets, filled up by
    zeros.
    """
    tokens_BT = np.zeros((batch_size, length), np.int32)
    places_BM = np.zeros((batch_size, num_targets), np.int32)
    labels_BM = np.zeros((batch_size, num_targets), np.int32)
    for row, sequence in enumerate(batch):
        tokens, count = sequence.tokens, sequence.num_targets
        num_inputs = len(tokens) - 1
        tokens_BT[row, :num_inputs] = tokens[:-1]
        places_BM[row, :count] = np.arange(num_inputs - count, num_inputs)
        labels_BM[row, :count] = tokens[len(tokens) - count :]
    return {"tokens": tokens_BT, "places": places_BM, "labels": labels_BM}


def _bucket(length: int, limit: int) -> int:
    """The least of 16, 24, 32, 48, 64, 96, … that has room; `limit` at most."""
    size = 16
    while size < length:
        is_power_of_two = size & (size - 1) == 0
        size = size * 3 // 2 if is_power_of_two else size * 4 // 3
    return min(size, limit)
