"""What a model costs, counted from the shapes of its weights and the names of their axes."""

import dataclasses
import math
from collections.abc import Collection, Mapping

from immutabledict import immutabledict

from matta_jax.nesting._axes import matrix_view
from matta_jax.nesting._narrow import Tree
from matta_jax.nesting._trees import flatten


@dataclasses.dataclass(frozen=True)
class Counts:
    """What a model costs.

    Attributes:
      parameters: numbers in its weights.
      bytes: at the storage type of the weights.
      flops_per_token: of one forward pass at a given sequence length: matmuls and the head (2 per
        weight), and attention's products, causal ones at half. Norms, biases and activations are
        left out, and so are rows that are looked up.
    """

    parameters: int
    bytes: int
    flops_per_token: int


def count_weights(
    weights: Tree,
    axes: Tree,
    *,
    heads: Collection[str] = (),
    attention: int = 0,
    read: Mapping[str, int] = immutabledict(),
) -> Counts:
    """Counts a plain model.

    Args:
      weights: of the model, or anything with their `shape` and `dtype`.
      axes: their axis names.
      heads: paths of the tables that are multiplied with, as the output's logits are made.
      attention: FLOPs of a token in the products of queries, keys and values.
      read: of axes of which a pass reads fewer entries than there are, how many.
    """
    names = flatten(axes)
    parameters = 0
    bytes_ = 0
    flops = attention

    for path, leaf in flatten(weights).items():
        size = math.prod(leaf.shape)
        parameters += size
        bytes_ += size * leaf.dtype.itemsize
        # A token meets each weight of a matrix in one multiplication and one addition. A table
        # counts only where it is a head: an embedding looks its rows up.
        if matrix_view(names[path]) is not None or path in heads:
            entries = zip(names[path], leaf.shape, strict=True)
            flops += 2 * math.prod(read.get(axis, count) for axis, count in entries)
    return Counts(parameters, bytes_, flops)
