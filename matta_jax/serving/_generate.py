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
from absl import logging

from matta_jax.errors import UserError, shorten
from matta_jax.models import Architecture, decoder_weights, extend, logits, prefill, table_of
from matta_jax.nesting import Tree
from matta_jax.packages import Model
from matta_jax.tokenizers import Tokenizer, fitting_tokenizer

_COLDEST = 1e-6  # Logits over less would overflow.
_LEAST_TOP_P = 1e-30  # As good as any less, which float32 takes for 0.
_MOST_TOKENS = 2**24
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


_DEFAULT = Sampling()


def generate(
    model: Model,
    prompt: str,
    *,
    num_tokens: int,
    num_samples: int = 1,
    sampling: Sampling = _DEFAULT,
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
    if num_tokens > _MOST_TOKENS:
        raise UserError(f"num_tokens={num_tokens} must be at most {_MOST_TOKENS}")
    if num_samples > _MOST_SAMPLES:
        raise UserError(
            f"num_samples={num_samples} must be at most {_MOST_SAMPLES}; draw more with other seeds"
        )
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UserError(f"prompt={prompt!r} is not UTF-8; convert it") from None
    if model.reads_examples:
        where = next(iter(model.origin.values()))
        noun = model.config.model.a_noun
        raise UserError(f"{where} is {noun}, and writes no text; name a language model")
    tokenizer = fitting_tokenizer(model.config.data.tokenizer, model.config.model.vocab_size)
    # The separator begins a document, and gives an empty prompt a token to read.
    start = np.array([tokenizer.start_id, *prompt_ids(tokenizer, prompt)], np.int32)
    ids_BT = generate_ids(
        model,
        np.tile(start, (num_samples, 1)),
        num_tokens=num_tokens,
        eos_id=tokenizer.eos_id,
        sampling=sampling,
        allowed=ids_with_token(tokenizer, model.architecture.vocab_size),
    )
    texts = []
    for row in ids_BT:
        # One more separator, so that there is a first one in a text that did not end.
        drawn = np.append(row[len(start) :], tokenizer.eos_id).tolist()
        end = len(start) + drawn.index(tokenizer.eos_id)
        # Without the separator that it began with.
        texts.append(tokenizer.decode(row[1:end]))
    return texts


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> np.ndarray:
    """Returns the ids of a prompt, after a warning where they do not hold all of it."""
    ids = tokenizer.encode(prompt)
    if not tokenizer.survives(prompt, ids):
        logging.warning(
            "prompt=%s does not survive encode and decode: the model reads %s",
            shorten(prompt),
            shorten(tokenizer.decode(ids)),
        )
    return ids


def ids_with_token(tokenizer: Tokenizer, vocab_size: int) -> np.ndarray | None:
    """Returns which ids [vocab_size] of a model have a token, for `generate_ids`; None where all
    have.
    """
    allowed = np.zeros(vocab_size, bool)
    allowed[: tokenizer.vocab_size] = tokenizer.has_token
    return None if allowed.all() else allowed


def generate_ids(
    model: Model,
    ids_BT: np.ndarray,
    *,
    num_tokens: int,
    eos_id: int,
    sampling: Sampling = _DEFAULT,
    allowed: np.ndarray | None = None,
) -> np.ndarray:
    """As `generate`, on token ids: returns prompts and continuations [B, T + at most num_tokens].

    A row that has ended goes on with `eos_id`.

    Args:
      model: as of `generate`.
      ids_BT: prompts.
      num_tokens: most tokens of a continuation.
      eos_id: the separator.
      sampling: how.
      allowed: bool [vocab_size], ids that may be drawn; None: all.
    """
    limit = model.config.data.seq_len
    # A cache is of a plain model's layers, so a sub-model in place is sliced first.
    model = model.plain()
    ids_BT = np.asarray(ids_BT, np.int32)
    remaining = num_tokens
    ended_B = np.zeros(len(ids_BT), bool)
    key = jax.random.key(sampling.seed)
    # One turn, unless the text outgrows the model's sequences: then each reads its end anew.
    while remaining and not ended_B.all():
        seen = _context_length(ids_BT.shape[1], remaining, limit)
        steps = min(remaining, limit + 1 - seen)
        # Filled up at the end to one of few lengths: what is not seen is written over.
        padded = np.zeros((len(ids_BT), _padded_length(seen, limit)), np.int32)
        padded[:, :seen] = ids_BT[:, ids_BT.shape[1] - seen :]

        key, draw_key = jax.random.split(key)
        program = _Program.of(model.architecture, sampling, _padded_length(seen + steps, limit))
        draw = _Draw.of(sampling, model.architecture.vocab_size, seen, steps, eos_id, draw_key)
        if allowed is not None:
            draw = dataclasses.replace(draw, allowed=jnp.asarray(allowed, bool))
        new_BS, ended, count = _continue(program, model.params, padded, draw, jnp.asarray(ended_B))

        # Fewer than `steps` where all rows ended before.
        num_drawn = int(count)
        drawn_BS = np.asarray(new_BS)[:, :num_drawn]
        ids_BT = np.concatenate([ids_BT, drawn_BS], axis=1)
        ended_B = np.asarray(ended)
        remaining -= num_drawn
    return ids_BT


def _context_length(length: int, remaining: int, limit: int) -> int:
    """How many of the last tokens are read: all, or where the text outgrows the model's sequences
    the last half of one, or as many as leave room for what remains.
    """
    # The last token is drawn, but not read.
    if length + remaining <= limit + 1:
        return length
    return min(length, max(limit // 2, limit + 1 - remaining, 1))


def _padded_length(length: int, limit: int) -> int:
    """A power of two, or `limit`: few lengths to compile for."""
    return min(1 << (length - 1).bit_length(), limit)


@dataclasses.dataclass(frozen=True)
class _Program:
    """What a continuation is compiled for.

    Attributes:
      architecture: of the model.
      length: room of the cache.
      is_greedy: whether the most likely token is taken.
      has_top_k, has_top_p: whether tokens are left out.
    """

    architecture: Architecture
    length: int
    is_greedy: bool
    has_top_k: bool
    has_top_p: bool

    @classmethod
    def of(cls, architecture: Architecture, sampling: Sampling, length: int) -> "_Program":
        """That of a way of drawing."""
        return cls(
            architecture,
            length,
            sampling.temperature == 0,
            sampling.top_k is not None,
            sampling.top_p is not None,
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Draw:
    """What a continuation depends on that is data.

    Attributes:
      seen: tokens of each row that are read.
      steps: tokens to draw at most.
      eos_id: the separator, which ends a row.
      temperature, top_k, top_p: as of `Sampling`.
      key: of the draws.
      allowed: ids that may be drawn [V]; None: all.
    """

    seen: jax.Array
    steps: jax.Array
    eos_id: jax.Array
    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    key: jax.Array
    allowed: jax.Array | None = None

    @classmethod
    def of(
        cls, sampling: Sampling, vocab_size: int, seen: int, steps: int, eos_id: int, key: jax.Array
    ) -> "_Draw":
        """That of a way of drawing; numbers without effect are 1."""
        return cls(
            jnp.int32(seen),
            jnp.int32(steps),
            jnp.int32(eos_id),
            jnp.float32(sampling.temperature or 1),
            jnp.int32(min(sampling.top_k or 1, vocab_size)),
            jnp.float32(max(sampling.top_p or 1, _LEAST_TOP_P)),
            key,
        )


@functools.partial(jax.jit, static_argnums=0)
def _continue(
    program: _Program, params: Tree, tokens_BT: jax.Array, draw: _Draw, ended_B: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Reads the first `seen` tokens of each row and draws up to `steps` more; returns them, who
    ended, and how many.
    """
    architecture = program.architecture
    table = table_of(architecture, params)
    assert table is not None
    weights = decoder_weights(architecture, params)
    hidden_ND, cache = prefill(architecture, weights, tokens_BT, length=program.length)
    hidden_BTD = hidden_ND.reshape(*tokens_BT.shape, -1)
    # The last token that is seen, not the last of the row: what fills it up comes after.
    last_BD = hidden_BTD[:, draw.seen - 1]

    def draw_token(
        hidden_BD: jax.Array, step: jax.Array, ended_B: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        z_BV = _cut(logits(hidden_BD, table), program, draw)
        if program.is_greedy:
            drawn = jnp.argmax(z_BV, axis=-1)
        else:
            # The step is data, so each makes its key from the one of the turn.
            step_key = jax.random.fold_in(draw.key, step)
            drawn = jax.random.categorical(step_key, z_BV)

        # Rows end at different steps, but go on side by side until the last one does.
        drawn_B = jnp.where(ended_B, draw.eos_id, drawn.astype(jnp.int32))
        return drawn_B, ended_B | (drawn_B == draw.eos_id)

    def goes_on(carry: tuple[Any, ...]) -> jax.Array:
        step, _, ended_B, _ = carry
        return (step < draw.steps) & ~jnp.all(ended_B)

    def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        step, new_BS, ended_B, cache = carry
        previous_B1 = jax.lax.dynamic_slice_in_dim(new_BS, step - 1, 1, axis=1)
        # Token 0 of the new ones stands at `seen`.
        position = draw.seen + step - 1
        hidden_BD, cache = extend(architecture, weights, previous_B1, cache, position)
        drawn_B, ended_B = draw_token(hidden_BD, step, ended_B)
        return step + 1, new_BS.at[:, step].set(drawn_B), ended_B, cache

    # The first new token comes of the prompt itself; from there on each comes of the one before.
    drawn_B, ended_B = draw_token(last_BD, jnp.int32(0), ended_B)
    new_BS = jnp.full((len(tokens_BT), program.length + 1), draw.eos_id).at[:, 0].set(drawn_B)
    start = (jnp.int32(1), new_BS, ended_B, cache)
    count, new_BS, ended_B, _ = jax.lax.while_loop(goes_on, body, start)
    return new_BS, ended_B, count


def _cut(z_BV: jax.Array, program: _Program, draw: _Draw) -> jax.Array:
    """Logits at a temperature, -inf for the ids that are not allowed and the tokens that top_k and
    top_p leave out; those as likely as the last stay.
    """
    z_BV = z_BV / draw.temperature
    if draw.allowed is not None:
        z_BV = jnp.where(draw.allowed, z_BV, -jnp.inf)
    if not (program.has_top_k or program.has_top_p):
        return z_BV

    # Both cut at a logit, the floor of a row: what is below it is left out.
    falling_BV = -jnp.sort(-z_BV, axis=-1)
    floor_B = falling_BV[:, draw.top_k - 1] if program.has_top_k else falling_BV[:, -1]
    if program.has_top_p:
        likely_BV = jnp.where(falling_BV >= floor_B[:, None], falling_BV, -jnp.inf)
        p_BV = jax.nn.softmax(likely_BV, axis=-1)
        before_BV = jnp.cumsum(p_BV, axis=-1) - p_BV
        # The first one always stays: nothing is before it.
        likely_BV = jnp.where(before_BV < draw.top_p, likely_BV, jnp.inf)
        floor_B = jnp.maximum(floor_B, jnp.min(likely_BV, axis=-1))
    return jnp.where(z_BV >= floor_B[:, None], z_BV, -jnp.inf)
