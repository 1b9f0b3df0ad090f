"""What a batch asks of a model: its inputs, and what these should give.

Shape letters: B batch, T sequence, N targets: tokens of a language model (= B·T), examples of a
scorer (= B).
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from matta_jax.models._scorer import Extras


@dataclasses.dataclass(frozen=True)
class Targets:
    """A batch, as models and losses take it.

    Attributes:
      tokens_BT: the inputs.
      extras: a scorer's other inputs; None for a language model.
      labels_N: the next token of each, or the class of each example.
      weights_N: 1 for targets that count, 0 for those that fill up the batch.
    """

    tokens_BT: jax.Array
    extras: Extras | None
    labels_N: jax.Array
    weights_N: jax.Array


def targets_of(batch: Mapping[str, jax.Array]) -> Targets:
    """Reads a batch of windows (`tokens` [B, T + 1], `length` [B]), or of examples (`tokens` [B,
    T], `length`, `label` and `weight` [B], and features)."""
    if "label" in batch:
        extras = {name: batch[name] for name in ("length", "dense", "categorical") if name in batch}
        return Targets(batch["tokens"], extras, batch["label"], batch["weight"])
    tokens_BT = batch["tokens"]
    counted_BT = jnp.arange(tokens_BT.shape[1] - 1) < batch["length"][:, None]
    return Targets(
        tokens_BT[:, :-1],
        None,
        tokens_BT[:, 1:].reshape(-1),
        counted_BT.reshape(-1).astype(jnp.float32),
    )
