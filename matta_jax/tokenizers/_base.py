"""What every tokenizer does, and what those made from files share."""

import hashlib
import importlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from matta_jax import storage
from matta_jax.errors import UserError


class Tokenizer(Protocol):
    """Text to ids and back.

    Attributes:
      vocab_size: ids are below it.
      eos_id: separates documents; never produced by `encode`.
      fingerprint: changes when the tokenizer does.
    """

    vocab_size: int
    eos_id: int
    fingerprint: str

    def encode(self, text: str) -> np.ndarray:
        """Returns ids [n] of a text."""
        ...

    def decode(self, ids: np.ndarray) -> str:
        """Returns the text of ids; broken characters become U+FFFD."""
        ...


def hash_files(files: Sequence[storage.Path]) -> str:
    """A hash of the bytes of some files, one after the other."""
    content = b"".join(storage.read_bytes(file) for file in files)
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def import_library(name: str, spec: str) -> Any:
    """Returns a library of the extra `tokenizers`. Raises UserError where it is not installed."""
    # Not at the top of a module: a byte tokenizer works without the extra.
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"data.tokenizer={spec!r} needs the package {name}: pip install 'matta_jax[tokenizers]'"
        ) from None
