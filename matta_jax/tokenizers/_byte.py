"""The tokenizer that needs no files."""

import numpy as np


class ByteTokenizer:
    """UTF-8 bytes; byte 0, which no text holds, separates documents."""

    vocab_size = 256
    eos_id = 0
    fingerprint = "byte"

    def encode(self, text: str) -> np.ndarray:
        """Returns the bytes of a text; NUL characters are dropped."""
        return np.frombuffer(text.replace("\0", "").encode(), np.uint8)

    def decode(self, ids: np.ndarray) -> str:
        """Returns the text of bytes, without separators."""
        return bytes(int(i) for i in ids if i).decode("utf-8", errors="replace")
