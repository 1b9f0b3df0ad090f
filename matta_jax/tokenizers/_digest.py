"""Whether two tokenizers do the same."""

import hashlib
import json

import numpy as np

from matta_jax.tokenizers._base import Tokenizer

# A text on which tokenizers with the same tokens, but other rules, differ: quotes, digits, accents,
# white space, signs of several bytes.
_PROBE = "The dog's 12 naïve friends,\n\n  don't they? E=mc² 東京 \U0001f600\t"


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """A hash of what a tokenizer does, whatever files it comes from: the text of each id, and the
    ids of a probe.
    """
    digest = hashlib.blake2b(digest_size=16)
    for i in range(tokenizer.vocab_size):
        text = tokenizer.decode(np.array([i]))
        digest.update(text.encode() + b"\0")

    ids = np.asarray(tokenizer.encode(_PROBE), np.int64)
    summary = [tokenizer.vocab_size, *tokenizer.separator.tolist(), ids.tolist()]
    digest.update(json.dumps(summary).encode())
    return digest.hexdigest()
