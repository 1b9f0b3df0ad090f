"""How the next token is drawn: of each row by settings and a key of its own.

What a row draws depends on its logits, its settings, its seed and how many tokens it has drawn
before, and on nothing else in the batch.

Shape letters: S rows, V vocab.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from immutabledict import immutabledict

from matta_jax.errors import UserError

_COLDEST = 1e-6  # Logits over less would overflow.
_LEAST_SHARE = 1e-30  # As good as any less, which float32 takes for 0.
_LARGEST_BIAS = 100.0  # As OpenAI's interface has it: enough to force or to ban a token.


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Logits are changed in this order: the penalty, the bias, the temperature; then top_k, top_p and
    min_p leave tokens out.

    Attributes:
      temperature: of the softmax; 0 takes the most likely token, others are at least 1e-6.
      top_k: draws among so many of the most likely tokens; None: among all.
      top_p: and among the fewest that together have this probability, in (0, 1] (Holtzman et al.
        2020); None: all.
      seed: of the draws.
      min_p: and among those at least so likely as this share of the most likely one, in [0, 1]
        (Nguyen et al. 2024); None: all.
      repetition_penalty: divides the logits above 0 of tokens that stand in the prompt or were
        drawn, and multiplies those below 0 (Keskar et al. 2019); above 0, and 1 changes nothing.
      logit_bias: id to what is added to its logit, from -100 to 100.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=immutabledict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "logit_bias", immutabledict(self.logit_bias))
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
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise UserError(f"min_p={self.min_p} must be from 0 to 1")
        if not 0 < self.repetition_penalty < float("inf"):
            raise UserError(
                f"repetition_penalty={self.repetition_penalty} must be a finite number above 0; 1 "
                "changes nothing"
            )
        for token, bias in self.logit_bias.items():
            if not -_LARGEST_BIAS <= bias <= _LARGEST_BIAS:
                raise UserError(
                    f"logit_bias={bias} of token {token} must be from -{_LARGEST_BIAS:g} to "
                    f"{_LARGEST_BIAS:g}"
                )

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature == 0

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises UserError where a bias is of an id that the model does not have."""
        for token in self.logit_bias:
            if not 0 <= token < vocab_size:
                raise UserError(
                    f"logit_bias names token {token}: the model's are from 0 to {vocab_size - 1}"
                )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Draws:
    """The settings of all rows, as data of a program. What no row asks for is None: a program
    without it is another one, and faster.

    Attributes:
      keys: of the draws, uint32 [S, 2]; None: all rows are greedy.
      temperature: [S], 0 of greedy rows.
      top_k, top_p, min_p: [S], with numbers that leave nothing out for rows that name none.
      penalty: [S].
      seen: the ids that stand in a row [S, V], of the penalty.
      bias: added to logits [S, V].
      allowed: ids that may be drawn [V]; None: all.
    """

    temperature: jax.Array
    keys: jax.Array | None = None
    top_k: jax.Array | None = None
    top_p: jax.Array | None = None
    min_p: jax.Array | None = None
    penalty: jax.Array | None = None
    seen: jax.Array | None = None
    bias: jax.Array | None = None
    allowed: jax.Array | None = None

    def with_drawn(self, drawn_S: jax.Array, counts_S: jax.Array) -> "Draws":
        """After rows drew tokens, where `counts_S` is true."""
        if self.seen is None:
            return self
        rows = jnp.arange(len(drawn_S))
        now = self.seen[rows, drawn_S] | counts_S
        return dataclasses.replace(self, seen=self.seen.at[rows, drawn_S].set(now))


def draws_of(
    samplings: Sequence[Sampling],
    indices: Sequence[int],
    texts: Sequence[Sequence[int]],
    *,
    vocab_size: int,
    allowed: np.ndarray | None = None,
) -> Draws:
    """The settings of rows.

    Args:
      samplings: of each row.
      indices: of each row which sample of its seed it is.
      texts: the ids of each row, by which the penalty goes.
      vocab_size: ids of the model.
      allowed: bool [vocab_size], ids that may be drawn; None: all.
    """
    optional: dict[str, np.ndarray] = {}
    if not all(each.is_greedy for each in samplings):
        pairs = [(each.seed, index) for each, index in zip(samplings, indices, strict=True)]
        # No key is made of them here: a program makes it, and no row waits for another's.
        optional["keys"] = np.array(pairs, np.uint32)
        if any(each.top_k is not None for each in samplings):
            top_k = [min(each.top_k or vocab_size, vocab_size) for each in samplings]
            optional["top_k"] = np.array(top_k, np.int32)
        if any(each.top_p is not None for each in samplings):
            top_p = [max(each.top_p or 1.0, _LEAST_SHARE) for each in samplings]
            optional["top_p"] = np.array(top_p, np.float32)
        if any(each.min_p is not None for each in samplings):
            optional["min_p"] = np.array([each.min_p or 0.0 for each in samplings], np.float32)
    if any(each.repetition_penalty != 1 for each in samplings):
        penalty = [each.repetition_penalty for each in samplings]
        optional["penalty"] = np.array(penalty, np.float32)
        optional["seen"] = _seen(texts, vocab_size)
    if any(each.logit_bias for each in samplings):
        optional["bias"] = _bias(samplings, vocab_size)
    if allowed is not None:
        optional["allowed"] = np.asarray(allowed, bool)
    temperature = np.array([each.temperature for each in samplings], np.float32)
    return Draws(
        jnp.asarray(temperature), **{name: jnp.asarray(value) for name, value in optional.items()}
    )


def _seen(texts: Sequence[Sequence[int]], vocab_size: int) -> np.ndarray:
    seen = np.zeros((len(texts), vocab_size), bool)
    for row, ids in zip(seen, texts, strict=True):
        row[np.asarray(ids, np.int64)] = True
    return seen


def _bias(samplings: Sequence[Sampling], vocab_size: int) -> np.ndarray:
    bias = np.zeros((len(samplings), vocab_size), np.float32)
    for row, sampling in zip(bias, samplings, strict=True):
        for token, value in sampling.logit_bias.items():
            row[token] = value
    return bias


def cut(z_SV: jax.Array, draws: Draws) -> jax.Array:
    """Logits as settings change them, -inf for the ids that are left out; those as likely as the
    last of those that stay do too.
    """
    z_SV = _changed(z_SV, draws)
    temperature_S = jnp.where(draws.temperature > 0, draws.temperature, 1.0)
    z_SV = z_SV / temperature_S[:, None]
    if draws.top_k is None and draws.top_p is None and draws.min_p is None:
        return z_SV

    # All cut at a logit, the floor of a row: what is below it is left out.
    falling_SV = -jnp.sort(-z_SV, axis=-1)
    floor_S = falling_SV[:, -1]
    if draws.top_k is not None:
        floor_S = jnp.take_along_axis(falling_SV, draws.top_k[:, None] - 1, axis=-1)[:, 0]
    if draws.top_p is not None:
        likely_SV = jnp.where(falling_SV >= floor_S[:, None], falling_SV, -jnp.inf)
        p_SV = jax.nn.softmax(likely_SV, axis=-1)
        before_SV = jnp.cumsum(p_SV, axis=-1) - p_SV
        # The first one always stays: nothing is before it.
        likely_SV = jnp.where(before_SV < draws.top_p[:, None], likely_SV, jnp.inf)
        top_p_floor_S = jnp.maximum(floor_S, jnp.min(likely_SV, axis=-1))
        # The sum of all may round to 1 before the last: a row without top_p loses nothing by it.
        floor_S = jnp.where(draws.top_p < 1, top_p_floor_S, floor_S)
    if draws.min_p is not None:
        floor_S = jnp.maximum(floor_S, falling_SV[:, 0] + jnp.log(draws.min_p))
    return jnp.where(z_SV >= floor_S[:, None], z_SV, -jnp.inf)


def _changed(z_SV: jax.Array, draws: Draws) -> jax.Array:
    if draws.seen is not None:
        assert draws.penalty is not None
        penalty_S1 = draws.penalty[:, None]
        penalised_SV = jnp.where(z_SV > 0, z_SV / penalty_S1, z_SV * penalty_S1)
        z_SV = jnp.where(draws.seen, penalised_SV, z_SV)
    if draws.bias is not None:
        z_SV = z_SV + draws.bias
    if draws.allowed is not None:
        z_SV = jnp.where(draws.allowed, z_SV, -jnp.inf)
    return z_SV


def draw(z_SV: jax.Array, draws: Draws, step_S: jax.Array, stream: int = 0) -> jax.Array:
    """Draws a token of each row, int32 [S].

    Args:
      z_SV: of `cut`.
      draws: the rows' settings.
      step_S: tokens that each row has drawn before.
      stream: which of several draws of a step.
    """
    likeliest_S = jnp.argmax(z_SV, axis=-1).astype(jnp.int32)
    if draws.keys is None:
        return likeliest_S
    drawn_S = jax.vmap(jax.random.categorical)(step_keys(draws, step_S, stream), z_SV)
    return jnp.where(draws.temperature > 0, drawn_S.astype(jnp.int32), likeliest_S)


def step_keys(draws: Draws, step_S: jax.Array, stream: int = 0) -> jax.Array:
    """A key of each row for a draw, as of `draw`."""

    def make(pair: jax.Array, step: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(pair[0]), pair[1])
        return jax.random.fold_in(jax.random.fold_in(key, step), stream)

    assert draws.keys is not None
    return jax.vmap(make)(draws.keys, step_S)
