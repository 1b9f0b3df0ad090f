"""Text from a model, one token at a time, with the keys and values of what was read kept in a
cache.

Shape letters: B samples, T prompt, S cache, V vocab.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from matta_jax.errors import UserError
from matta_jax.models import Architecture, decode, decoder_weights, logits, prefill
from matta_jax.nesting import Tree
from matta_jax.packages import Model
from matta_jax.tokenizers import make_tokenizer

_COLDEST = 1e-6  # Logits over less would overflow.
_LEAST_TOP_P = 1e-30  # As good as any less, which float32 takes for 0.
_MOST_SAMPLES = 1024  # Side by side, with a cache each.


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
      temperature: of the softmax; 0 takes the most likely token, others are at least 1e-6.
      top_k: draws among so many of the most likely tokens; None: among all.
      top_p: and among the fewest that together have this probability, in (0, 1] (Holtzman et al.
        2020); None: all.
      seed: of the draws.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature != 0 and not _COLDEST <= self.temperature < float("inf"):
            raise UserError(
                f"temperature={self.temperature} must be 0, which takes the most likely token, or "
                "a finite number "
                f"from {_COLDEST} up"
            )
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k={self.top_k} must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} must be above 0, and at most 1")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed={self.seed} must be from 0 to {2**32 - 1}")


def generate(
    model: Model,
    prompt: str,
    *,
    num_tokens: int,
    num_samples: int = 1,
    sampling: Sampling = Sampling(),
) -> list[str]:
    """Continues a prompt; a text ends at the separator of documents, or after `num_tokens`.

    A text that outgrows the sequences of the model's training goes on from its last half of one,
    read anew.

    Args:
      model: an extracted model, or a sub-model in place.
      prompt: may be empty: a document begins.
      num_tokens: most tokens of a continuation.
      num_samples: continuations to draw, side by side; at most 1,024.
      sampling: how.

    Returns:
      The texts of the samples, each with the prompt before it.

    Raises:
      UserError: fewer than one token or sample, too many samples, or a model that is a scorer.
    """
    for name, value in {"num_tokens": num_tokens, "num_samples": num_samples}.items():
        if value < 1:
            raise UserError(f"{name}={value} must be at least 1")
    if num_samples > _MOST_SAMPLES:
        raise UserError(
            f"num_samples={num_samples} must be at most {_MOST_SAMPLES}; draw more with other seeds"
        )
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UserError(f"prompt={prompt!r} is not UTF-8; convert it") from None
    if model.is_scorer:
        where = next(iter(model.origin.values()))
        raise UserError(f"{where} is a scorer, and writes no text; name a language model")
    tokenizer = make_tokenizer(model.config.data.tokenizer)
    start = np.array([tokenizer.eos_id, *tokenizer.encode(prompt)], np.int32)
    ids_BT = generate_ids(
        model,
        np.tile(start, (num_samples, 1)),
        num_tokens=num_tokens,
        eos_id=tokenizer.eos_id,
        sampling=sampling,
    )
    ended = [
        np.append(row, tokenizer.eos_id).tolist().index(tokenizer.eos_id)
        for row in ids_BT[:, len(start) :]
    ]
    return [
        tokenizer.decode(row[1 : len(start) + end]) for row, end in zip(ids_BT, ended, strict=True)
    ]


def generate_ids(
    model: Model,
    ids_BT: np.ndarray,
    *,
    num_tokens: int,
    eos_id: int,
    sampling: Sampling = Sampling(),
) -> np.ndarray:
    """As `generate`, on token ids: returns prompts and continuations [B, T + at most num_tokens].

    A row that has ended goes on with `eos_id`.
    """
    model, limit = model.plain(), model.config.data.seq_len
    assert model.architecture is not None
    ids_BT, left = np.asarray(ids_BT, np.int32), num_tokens
    ended_B = np.zeros(len(ids_BT), bool)
    key = jax.random.key(sampling.seed)
    while left and not ended_B.all():
        seen = ids_BT.shape[1]
        if seen + left > limit + 1:  # The last token is drawn, but not read.
            seen = min(seen, max(limit // 2, limit + 1 - left, 1))
        steps = min(left, limit + 1 - seen)
        padded = np.zeros((len(ids_BT), _padded_length(seen, limit)), np.int32)
        padded[:, :seen] = ids_BT[:, ids_BT.shape[1] - seen :]
        key, own_key = jax.random.split(key)
        new_BS, ended, count = _continue(
            model.architecture,
            _padded_length(seen + steps, limit),
            sampling.temperature == 0,
            (sampling.top_k is not None, sampling.top_p is not None),
            model.params,
            padded,
            jnp.int32(seen),
            jnp.int32(steps),
            jnp.asarray(ended_B),
            jnp.int32(eos_id),
            (
                jnp.float32(sampling.temperature or 1),
                jnp.int32(min(sampling.top_k or 1, model.architecture.vocab_size)),
                jnp.float32(max(sampling.top_p or 1, _LEAST_TOP_P)),
            ),
            own_key,
        )
        ids_BT = np.concatenate([ids_BT, np.asarray(new_BS)[:, : int(count)]], axis=1)
        ended_B, left = np.asarray(ended), left - int(count)
    return ids_BT


def _padded_length(length: int, limit: int) -> int:
    """A power of two, or `limit`: few lengths to compile for."""
    return min(1 << (length - 1).bit_length(), limit)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _continue(
    architecture: Architecture,
    length: int,
    greedy: bool,
    cuts: tuple[bool, bool],
    params: Tree,
    tokens_BT: jax.Array,
    seen: jax.Array,
    steps: jax.Array,
    ended_B: jax.Array,
    eos_id: jax.Array,
    numbers: tuple[jax.Array, ...],
    key: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Reads the first `seen` tokens of each row and draws up to `steps` more; returns them, who
    ended, and how many.
    """
    weights = decoder_weights(architecture, params)
    hidden_ND, cache = prefill(weights, tokens_BT, length=length)
    last_BD = hidden_ND.reshape(*tokens_BT.shape, -1)[:, seen - 1]
    table = params["embed"]["tokens"]

    def draw(
        hidden_BD: jax.Array, step: jax.Array, ended_B: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        z_BV = _cut(logits(hidden_BD, table), cuts, *numbers)
        drawn = (
            jnp.argmax(z_BV, axis=-1)
            if greedy
            else jax.random.categorical(jax.random.fold_in(key, step), z_BV)
        )
        drawn_B = jnp.where(ended_B, eos_id, drawn.astype(jnp.int32))
        return drawn_B, ended_B | (drawn_B == eos_id)

    def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        step, new_BS, ended_B, cache = carry
        previous_B = new_BS[:, step - 1]
        hidden_BD, cache = decode(weights, previous_B, cache, seen + step - 1)
        drawn_B, ended_B = draw(hidden_BD, step, ended_B)
        return step + 1, new_BS.at[:, step].set(drawn_B), ended_B, cache

    drawn_B, ended_B = draw(last_BD, jnp.int32(0), ended_B)
    new_BS = jnp.full((len(tokens_BT), length + 1), eos_id).at[:, 0].set(drawn_B)
    goes_on = lambda carry: (carry[0] < steps) & ~jnp.all(carry[2])
    count, new_BS, ended_B, _ = jax.lax.while_loop(
        goes_on, body, (jnp.int32(1), new_BS, ended_B, cache)
    )
    return new_BS, ended_B, count


def _cut(
    z_BV: jax.Array,
    cuts: tuple[bool, bool],
    temperature: jax.Array,
    top_k: jax.Array,
    top_p: jax.Array,
) -> jax.Array:
    """Logits at a temperature, -inf for the tokens that top_k and top_p leave out; those as likely
    as the last stay.
    """
    z_BV = z_BV / temperature
    if not any(cuts):
        return z_BV
    falling_BV = -jnp.sort(-z_BV, axis=-1)
    floor_B = falling_BV[:, top_k - 1] if cuts[0] else falling_BV[:, -1]
    if cuts[1]:
        kept_BV = jnp.where(falling_BV >= floor_B[:, None], falling_BV, -jnp.inf)
        before_BV = jnp.cumsum(jax.nn.softmax(kept_BV, axis=-1), axis=-1) - jax.nn.softmax(
            kept_BV, axis=-1
        )
        kept_BV = jnp.where(
            before_BV < top_p, kept_BV, jnp.inf
        )  # The first one always stays: nothing is before it.
        floor_B = jnp.maximum(floor_B, jnp.min(kept_BV, axis=-1))
    return jnp.where(z_BV >= floor_B[:, None], z_BV, -jnp.inf)
