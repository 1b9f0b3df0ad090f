"""The certificate: an extracted model computes what its slice of the TA computes in place.

Layer by layer, so that no more than one layer of the TA's size exists at a time: the weights read
back from the extracted files run alone; the weights taken from the TA run in place, inside arrays
of the TA's shape that hold NaN wherever the sub-model has no business. Both get the same input, and
must give the same bits, from the embedding to the logits over the ids of the batch. (The rest of
the table is equal by its fingerprint.)
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from matta_jax.checkpoints import StoredArray
from matta_jax.models import logits, module_apply
from matta_jax.nesting import (
    Names,
    SubModel,
    Tree,
    flatten,
    narrow_array,
    place_array,
    sizes_of,
    unflatten,
)

BATCH, LENGTH = 2, 64
_Cut = tuple[
    tuple[tuple[str, Names], ...], tuple[tuple[str, Any], ...]
]  # Names of each weight; sizes of each axis.


def prove(
    params: Tree,
    written: Mapping[str, StoredArray],
    sub_model: SubModel,
    *,
    abstract: Tree,
    axes: Tree,
) -> tuple[float, tuple[int, int]]:
    """Compares a sub-model in place with the model that was written.

    Args:
      params: the sub-model's weights, as read from the TA.
      written: the extracted model's weights, on disk.
      sub_model: which it is.
      abstract: shapes of the TA's weights.
      axes: their axis names.

    Returns:
      The largest |difference| between activations; and the batch's shape (B, T).
    """
    taken, shapes, names = flatten(params), flatten(abstract), flatten(axes)
    table = np.asarray(taken["embed/tokens"])
    length = min(LENGTH, taken["embed/positions"].shape[0])
    seen = "all" if "head/w" in taken else "causal"
    ids, tokens = np.unique(
        np.random.default_rng(0).integers(0, len(table), (BATCH, length)), return_inverse=True
    )
    worst = 0.0

    def compare(a: jax.Array, b: jax.Array) -> jax.Array:
        nonlocal worst
        difference = np.abs(np.asarray(a) - np.asarray(b))
        worst = max(worst, float(np.max(np.where(np.isnan(difference), np.inf, difference))))
        return a

    def run(
        kind: str,
        alone: dict[str, Any],
        own: dict[str, Any],
        x: jax.Array,
        width: int | None = None,
    ) -> jax.Array:
        """Runs a module alone and in place; `alone` and `own` are its weights, by their paths
        within it.
        """
        parent, first = ("blocks/0", 1) if kind == "block" else (kind, 0)
        sizes = sizes_of(sub_model, width)
        axes_of = {path: names[f"{parent}/{path}"][first:] for path in own}
        whole = {}
        for path, part in own.items():
            ta_shape = shapes[f"{parent}/{path}"].shape[first:]
            shape = [
                n if name in _ROWS else m
                for name, n, m in zip(axes_of[path], part.shape, ta_shape, strict=True)
            ]
            whole[path] = np.full(shape, np.nan, np.float32)
            place_array(np.asarray(part, np.float32), whole[path], axes_of[path], sizes)
        plain = {path: np.asarray(part, np.float32) for path, part in alone.items()}
        context = {"block": (length, seen), "head": (seen,)}.get(kind, ())
        cut = (tuple(axes_of.items()), tuple(sizes.items()))
        return compare(_run(kind, context, None, plain, x), _run(kind, context, cut, whole, x))

    written_table = written["embed/tokens"].whole()[ids]
    own = {"tokens": table[ids], "positions": np.asarray(taken["embed/positions"])}
    alone = {"tokens": written_table, "positions": written["embed/positions"].whole()}
    x_ND = run("embed", alone, own, jnp.asarray(tokens.reshape(BATCH, length), jnp.int32))
    rng = np.random.default_rng(1)
    for kind, inputs in _features(shapes, rng).items():
        run(kind, *_outer(kind, written, taken), inputs)
    for i, one in enumerate(sub_model.runs):
        prefix = f"blocks/{i}/"
        stacks = {
            path.removeprefix(prefix): stack
            for path, stack in taken.items()
            if path.startswith(prefix)
        }
        for j in range(len(one.layers)):
            own = {path: stack[j] for path, stack in stacks.items()}
            alone = {path: _layer(written[prefix + path], j) for path in stacks}
            x_ND = run("block", alone, own, x_ND, one.d_ff)
    x_ND = run("norm", *_outer("norm", written, taken), x_ND)
    if seen == "all":
        run("head", *_outer("head", written, taken), x_ND)
    else:
        compare(_logits(x_ND, np.float32(written_table)), _logits(x_ND, np.float32(table[ids])))
    return worst, (BATCH, length)


_ROWS = ("vocab", "positions")  # Axes of which the batch's own entries are enough.
_logits = jax.jit(logits)


def _outer(
    kind: str, written: Mapping[str, StoredArray], taken: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The weights of a module outside the layers: as written, and as taken from the TA."""
    own = {
        path.removeprefix(f"{kind}/"): leaf
        for path, leaf in taken.items()
        if path.startswith(f"{kind}/")
    }
    return {path: written[f"{kind}/{path}"].whole() for path in own}, own


def _features(shapes: Mapping[str, Any], rng: np.random.Generator) -> dict[str, jax.Array]:
    """Inputs of a scorer's features, where it has some, by their module."""
    inputs = {}
    if "dense/w" in shapes:
        inputs["dense"] = jnp.asarray(
            rng.normal(size=(BATCH, shapes["dense/w"].shape[0])), jnp.float32
        )
    if "categories/table" in shapes:
        inputs["categories"] = jnp.asarray(
            rng.integers(0, shapes["categories/table"].shape[0], (BATCH, 3)), jnp.int32
        )
    return inputs


def _layer(stack: StoredArray, layer: int) -> np.ndarray:
    return stack[(slice(layer, layer + 1), *(slice(None),) * (len(stack.shape) - 1))][0]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _run(
    kind: str,
    context: tuple[Any, ...],
    cut: _Cut | None,
    weights: dict[str, jax.Array],
    x: jax.Array,
):
    """`context` is what a module needs beside `x`: lengths, and whether attention is "causal" or
    sees "all".
    """
    if cut is not None:
        names, sizes = cut
        weights = {path: narrow_array(weights[path], axes, dict(sizes)) for path, axes in names}
    length = x.shape[0] // BATCH
    meaning = {"causal": None, "all": jnp.ones((BATCH, length), bool)}
    return module_apply(kind, unflatten(weights), x, *(meaning.get(part, part) for part in context))
