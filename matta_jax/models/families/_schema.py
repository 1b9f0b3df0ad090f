"""What a family reads: the one truth for batches, data, proofs and cards.

Shape letters: B batch, T sequence, N targets: tokens of a language model (= B·T), examples (= B).
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from matta_jax.models.layers import Context
from matta_jax.sharding import Stretches

Inputs = Mapping[str, jax.Array]
"""What a model reads, by name; `tokens` [B, T] among them."""

_LENGTH = "length"
DOCUMENTS = "documents"
"""Of windows whose documents are apart: which of them each position [B, T] belongs to; -1 for one
whose target does not count.
"""


POSITIONS = "positions"
"""Of a device that has a part of each window: where in it the tokens stand [T]; `DOCUMENTS` tells
of all positions still.
"""


def context_of(inputs: Inputs, start: jax.Array | None = None) -> Context:
    """What the layers of a decoder share; `start` as of `Context`."""
    return Context(
        inputs["tokens"].shape[1],
        start=start,
        documents_BT=inputs.get(DOCUMENTS),
        at_T=inputs.get(POSITIONS),
    )


def flat_positions(x_BS: jax.Array, inputs: Inputs) -> jax.Array:
    """What stands at the positions that a model reads [B·T, ...], of all positions [B, S, ...]."""
    if POSITIONS in inputs:
        x_BS = x_BS[:, inputs[POSITIONS]]
    return x_BS.reshape(-1, *x_BS.shape[2:])


@dataclasses.dataclass(frozen=True)
class Input:
    """One input of a model.

    Attributes:
      shape: beside the batch; None stands for the sequence.
      dtype: of its numbers.
      entries: the axis of weights whose rows its numbers choose; None: they choose none.
      limit: its numbers are below this, where they are whole ones.
    """

    shape: tuple[int | None, ...]
    dtype: str
    entries: str | None = None
    limit: int = 0

    def shape_of(self, batch_size: int, seq_len: int) -> tuple[int, ...]:
        """Its shape in a batch."""
        sizes = [seq_len if size is None else size for size in self.shape]
        return (batch_size, *sizes)


@dataclasses.dataclass(frozen=True)
class Targets:
    """A batch, as models and losses take it.

    Attributes:
      inputs: of the model.
      labels_N: the next token of each, or the class of each example.
      weights_N: 1 for targets that count, 0 for those that fill up the batch.
      scores_N: of pairs, where they have some.
      second_labels_N: of examples that are made of two, and
      shares_N: the part of `labels_N` in these.
    """

    inputs: Inputs
    labels_N: jax.Array
    weights_N: jax.Array
    scores_N: jax.Array | None = None
    second_labels_N: jax.Array | None = None
    shares_N: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Schema:
    """What a family reads, and what its outputs are compared with.

    Attributes:
      inputs: by name.
      kind: what a batch holds. `windows` of text: `tokens` [B, T + 1] and `length` [B], whose
        targets are the next tokens. `examples`: the inputs, `label` and `weight` [B]. `pairs` of
        texts: the inputs [B, 2, ...] and `weight` [B]; the class of a first text is its own second
        one among all of the batch.
    """

    inputs: Mapping[str, Input]
    kind: str = "windows"

    def batch_shapes(self, batch_size: int, seq_len: int) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and type of each array of a batch."""
        if self.kind == "windows":
            # One token more than a model reads: the last is a target alone.
            return {
                "tokens": ((batch_size, seq_len + 1), "int32"),
                _LENGTH: ((batch_size,), "int32"),
            }

        shapes = {}
        for name, declared in self.inputs.items():
            shape = declared.shape_of(batch_size, seq_len)
            if self.kind == "pairs":
                shape = (batch_size, 2, *shape[1:])
            shapes[name] = (shape, declared.dtype)
        if self.kind == "examples":
            shapes["label"] = ((batch_size,), "int32")
        shapes["weight"] = ((batch_size,), "float32")
        return shapes

    def targets(
        self, batch: Mapping[str, jax.Array], stretches: Stretches | None = None
    ) -> Targets:
        """Reads a batch; with `stretches` a device's part of each window."""
        if self.kind != "windows":
            inputs = {name: batch[name] for name in self.inputs}
            weights_N = batch["weight"]
            is_pairs = self.kind == "pairs"
            labels_N = jnp.arange(len(weights_N)) if is_pairs else batch["label"]
            return Targets(
                inputs,
                labels_N,
                weights_N,
                scores_N=batch.get("score"),
                second_labels_N=batch.get("label_2"),
                shares_N=batch.get("label_share"),
            )

        # Windows are filled up to one shape; what fills them is read, but no target.
        tokens_BT = batch["tokens"]
        counted_BT = jnp.arange(tokens_BT.shape[1] - 1) < batch[_LENGTH][:, None]
        inputs = {"tokens": tokens_BT[:, :-1]}
        if DOCUMENTS in batch:
            inputs[DOCUMENTS] = batch[DOCUMENTS]
            counted_BT &= batch[DOCUMENTS] >= 0
        if stretches is not None:
            inputs[POSITIONS] = stretches.positions(tokens_BT.shape[1] - 1)
            inputs["tokens"] = inputs["tokens"][:, inputs[POSITIONS]]
        return Targets(
            inputs,
            flat_positions(tokens_BT[:, 1:], inputs),
            flat_positions(counted_BT, inputs).astype(jnp.float32),
        )

    def example(self, batch_size: int, seq_len: int, seed: int) -> dict[str, np.ndarray]:
        """Returns random inputs of full length, to compare two ways of running a model by."""
        rng = np.random.default_rng(seed)
        inputs: dict[str, np.ndarray] = {}
        for name, declared in self.inputs.items():
            shape = declared.shape_of(batch_size, seq_len)
            if name == _LENGTH:
                inputs[name] = np.full(shape, seq_len, declared.dtype)
            elif declared.limit:
                inputs[name] = rng.integers(0, declared.limit, shape).astype(declared.dtype)
            else:
                inputs[name] = rng.normal(size=shape).astype(declared.dtype)
        return inputs
