"""Documents as tokens, and what is known of them."""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

from matta_jax.data._corpora import Document
from matta_jax.errors import UserError
from matta_jax.tokenizers import Tokenizer

DTYPES = ("uint16", "uint32")
"""What tokens are stored as, by the number of ids."""


@dataclasses.dataclass
class Tally:
    """What was encoded.

    Attributes:
      num_tokens: ids, of documents and separators.
      num_bytes: UTF-8 bytes of the documents, without those that their tokens do not hold.
      num_documents: those of which tokens hold something.
      num_lossy: documents that do not survive encode and decode.
      first_lossy: how the first of them begins.
    """

    num_tokens: int = 0
    num_bytes: int = 0
    num_documents: int = 0
    num_lossy: int = 0
    first_lossy: str = ""


def token_dtype(tokenizer: Tokenizer) -> np.dtype:
    """What the ids of a tokenizer are stored as."""
    return np.dtype(DTYPES[0] if tokenizer.vocab_size <= 2**16 else DTYPES[1])


def encode_documents(
    documents: Iterable[Document], tokenizer: Tokenizer, put: Callable[[np.ndarray], None]
) -> Tally:
    """Encodes documents one after the other, each with a separator behind it.

    Args:
      documents: the texts; of an empty one nothing is put.
      tokenizer: of the run.
      put: takes the ids [n] of a document, and of each separator, as `token_dtype` says.

    Raises:
      UserError: an id is beyond what ids are stored as.
    """
    tally = Tally()
    dtype = token_dtype(tokenizer)
    separator = tokenizer.separator.astype(dtype)
    for document in documents:
        ids = tokenizer.encode(document.text)
        survives = tokenizer.survives(document.text, ids)
        if document.text and not survives:
            tally.first_lossy = tally.first_lossy or document.text[:60]
            tally.num_lossy += 1
        if not len(ids):
            continue
        if not 0 <= ids.min() <= ids.max() <= np.iinfo(dtype).max:
            raise UserError(
                f"data.tokenizer={tokenizer.name!r} makes id {ids.max()}, beyond its "
                f"{tokenizer.vocab_size} ids; mend or replace its file"
            )
        put(np.ascontiguousarray(ids, dtype))
        put(separator)
        tally.num_tokens += len(ids) + len(separator)
        tally.num_bytes += tokenizer.count_bytes(document.text, ids, survives=survives)
        tally.num_documents += 1
    return tally
