"""The tokenizer that needs no files."""

import numpy as np

from matta_jax.tokenizers._base import Tokenizer


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes; byte 0, which no text holds, separates documents: NUL characters are dropped."""

    vocab_size = 256
    eos_id = 0
    fingerprint = "byte"
    name = "byte"

    def survives(self, text: str, ids: np.ndarray) -> bool:
        """Whether the ids of a text hold all of it: an id for each byte."""
        return len(ids) == len(text.encode())

    def num_bytes(self, ids: np.ndarray) -> int:
        """One for each id that is no separator, also of half a character."""
        return len(self._known(ids))

    def _ids_of(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8)

    def _text_of(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")
