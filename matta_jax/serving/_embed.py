"""Vectors of texts.

Shape letters: R texts, T tokens, E numbers of a vector.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from matta_jax.data import framed_ids, framed_rows
from matta_jax.errors import UserError
from matta_jax.packages import Model
from matta_jax.reporting import progress
from matta_jax.sharding import place_rows
from matta_jax.tokenizers import fitting_tokenizer

_BATCH_SIZE = 64
# Lengths are rounded up to a multiple of it: a program for each length would be compiled.
_STEP = 32


def embed(model: Model, texts: Sequence[str]) -> np.ndarray:
    """Returns the vectors [R, E] of texts, float32, of length 1.

    Args:
      model: an embedder.
      texts: of which those beyond its sequence length lose their end.

    Raises:
      UserError: the model is no embedder, its tokenizer is missing, or it cannot encode a text.

    Examples:
      >>> model = matta_jax.load_model("models/embedder")
      >>> matta_jax.embed(model, ["a text", "another text"]).shape
      (2, 4)
    """
    config = model.config
    if not config.model.reads_pairs:
        raise UserError(
            f"model {model.spec!r} is {config.model.a_noun}, and gives no vectors; name an embedder"
        )
    tokenizer = fitting_tokenizer(config.data.tokenizer, config.model.vocab_size)
    ids = [framed_ids(text, tokenizer, config.data.seq_len)[0] for text in texts]
    # Texts of one length together: the shorter are filled up to the longest of a batch.
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))

    program = jax.jit(model.apply)
    vectors_RE: np.ndarray | None = None
    starts = range(0, len(order), _BATCH_SIZE)
    for start in progress(starts, desc=f"embed {model.spec}", unit="batches", total=len(starts)):
        chosen = order[start : start + _BATCH_SIZE]
        batch = place_rows(_batch([ids[i] for i in chosen], config.data.seq_len), model.mesh)
        part_RE = np.asarray(program(model.params, batch))[: len(chosen)]
        if vectors_RE is None:
            vectors_RE = np.empty((len(ids), part_RE.shape[1]), np.float32)
        vectors_RE[chosen] = part_RE
    if vectors_RE is None:
        return np.empty((0, model.architecture.sub_model.sizes["embed"]), np.float32)
    return vectors_RE


def _batch(ids: Sequence[np.ndarray], longest: int) -> dict[str, Any]:
    """The inputs of a batch of full size."""
    length = max(len(text_ids) for text_ids in ids)
    seq_len = min(-(-length // _STEP) * _STEP, longest)
    rows = [*ids, *[ids[-1]] * (_BATCH_SIZE - len(ids))]
    return framed_rows(rows, seq_len)
