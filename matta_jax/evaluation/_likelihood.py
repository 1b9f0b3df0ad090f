"""Log-likelihoods of given continuations: what LAMBADA, SAT Math and the evaluation harness ask
for.

Requests go by in order of their length, in batches of a few lengths, so that a model compiles once
for each.

Shape letters: B batch, T sequence, M target tokens, D d_model, V vocab.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from matta_jax.models import logits
from matta_jax.packages import Model
from matta_jax.tokenizers import Tokenizer


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

    White space at the end of the context goes to the target. An empty context is the separator of
    documents.
    """
    stripped = context.rstrip()
    target = context[len(stripped) :] + target
    own = np.asarray(tokenizer.encode(stripped), np.int32)
    whole = np.asarray(tokenizer.encode(stripped + target), np.int32)
    if not len(own):
        return Request(np.array([tokenizer.eos_id], np.int32), whole)
    return Request(own, whole[len(own) :])


def likelihoods(
    model: Model, requests: Sequence[Request], *, batch_size: int = 16, label: str = "scoring"
) -> list[Likelihood]:
    """Scores requests, in their order; the longest batch sets the memory, logits exist at target
    tokens alone.

    A request longer than the sequences of the model's training loses tokens at its start.

    Args:
      model: an extracted model, or a sub-model in place.
      requests: what to score.
      batch_size: requests of a batch.
      label: of the progress bar.
    """
    limit = model.config.data.seq_len
    wholes = [
        np.concatenate([request.context, request.target])[-(limit + 1) :] for request in requests
    ]
    counts = [
        min(len(request.target), len(whole) - 1)
        for request, whole in zip(requests, wholes, strict=True)
    ]
    order = sorted(range(len(requests)), key=lambda i: -len(wholes[i]))
    targets = _bucket(max(counts, default=1), limit)
    found: list[Likelihood | None] = [None] * len(requests)

    @jax.jit
    def program(
        params, tokens_BT: jax.Array, places_BM: jax.Array, labels_BM: jax.Array
    ) -> tuple[jax.Array, ...]:
        hidden_BTD = model.apply(params, tokens_BT).reshape(*tokens_BT.shape, -1)

        def of_row(row: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
            hidden_TD, places_M, labels_M = row
            z_MV = logits(hidden_TD[places_M], params["embed"]["tokens"])
            own_M = jnp.take_along_axis(z_MV, labels_M[:, None], axis=-1)[:, 0]
            return own_M - jax.nn.logsumexp(z_MV, axis=-1), jnp.argmax(z_MV, axis=-1) == labels_M

        return jax.lax.map(of_row, (hidden_BTD, places_BM, labels_BM))

    starts = range(0, len(order), batch_size)
    for start in tqdm.tqdm(
        starts, desc=f"{label} {model.spec}", unit=" batches", delay=2.0, disable=None
    ):
        chosen = order[start : start + batch_size]
        length = _bucket(max(len(wholes[i]) - 1 for i in chosen), limit)
        tokens = np.zeros((batch_size, length), np.int32)
        places, labels = (np.zeros((batch_size, targets), np.int32) for _ in range(2))
        for row, i in enumerate(chosen):
            whole, count = wholes[i], counts[i]
            tokens[row, : len(whole) - 1] = whole[:-1]
            places[row, :count] = np.arange(len(whole) - 1 - count, len(whole) - 1)
            labels[row, :count] = whole[len(whole) - count :]
        log_probs, is_top = jax.device_get(program(model.params, tokens, places, labels))
        for row, i in enumerate(chosen):
            count = counts[i]
            truncated = len(requests[i].context) + len(requests[i].target) > limit + 1
            total = float(np.sum(log_probs[row, :count], dtype=np.float64))
            found[i] = Likelihood(total, is_top[row, :count], truncated)
    return [one for one in found if one is not None]


def _bucket(length: int, limit: int) -> int:
    """The least of 16, 24, 32, 48, 64, 96, … that has room; `limit` at most."""
    size = 16
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return min(size, limit)
