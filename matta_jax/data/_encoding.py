"""Documents as tokens, and what is known of them."""

import dataclasses
import time
from collections.abc import Callable

import numpy as np
from absl import logging

from matta_jax import storage
from matta_jax.data._corpora import Corpus, Document
from matta_jax.errors import UserError
from matta_jax.tokenizers import Tokenizer

_LARGE_BYTES = 5 * 10**8
_TRIED_CHARACTERS = 2**18
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


def warn_of_cost(corpus: Corpus, tokenizer: Tokenizer) -> None:
    """Tells how long a large corpus takes, which every host tokenises by itself before its first
    step.
    """
    if corpus.is_set:
        return
    num_bytes = sum(storage.num_bytes(path) for path in corpus.files())
    if num_bytes < _LARGE_BYTES:
        return
    first = next(iter(corpus), None)
    if first is None:
        return
    text = first.text[:_TRIED_CHARACTERS] or " "
    start = time.perf_counter()
    Encoder(tokenizer, lambda _: None).add(Document(first.key, text))
    rate = len(text.encode()) / (time.perf_counter() - start)
    logging.warning(
        "data.source=%r: tokenising %s MB of files takes about %s minutes here, or more where they "
        "are packed, before the first step and on every host; matta-prepare does it once, on all "
        "cores",
        corpus.source,
        f"{num_bytes / 1e6:,.0f}",
        f"{max(num_bytes / rate / 60, 1):,.0f}",
    )


class Encoder:
    """Encodes documents one after the other, each with a separator behind it.

    Args:
      tokenizer: of the run.
      put: takes the ids [n] of a document, and of each separator, as `token_dtype` says.

    Attributes:
      tally: of what was added; of an empty document nothing is put.
    """

    def __init__(self, tokenizer: Tokenizer, put: Callable[[np.ndarray], None]):
        self._tokenizer = tokenizer
        self._put = put
        self._dtype = token_dtype(tokenizer)
        self._separator = tokenizer.separator.astype(self._dtype)
        self.tally = Tally()

    def add(self, document: Document) -> None:
        """Encodes a document. Raises UserError for an id beyond what ids are stored as."""
        tokenizer, tally, text = self._tokenizer, self.tally, document.text
        ids = tokenizer.encode(text)
        survives = tokenizer.survives(text, ids)
        if text and not survives:
            tally.first_lossy = tally.first_lossy or text[:60]
            tally.num_lossy += 1
        if not len(ids):
            return
        if not 0 <= ids.min() <= ids.max() <= np.iinfo(self._dtype).max:
            raise UserError(
                f"data.tokenizer={tokenizer.name!r} makes id {ids.max()}, beyond its "
                f"{tokenizer.vocab_size} ids; mend or replace its file"
            )
        self._put(np.ascontiguousarray(ids, self._dtype))
        self._put(self._separator)
        tally.num_tokens += len(ids) + len(self._separator)
        tally.num_bytes += tokenizer.count_bytes(text, ids, survives=survives)
        tally.num_documents += 1
