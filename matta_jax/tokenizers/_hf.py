"""Any tokenizer of Hugging Face's library, from its JSON file."""

import numpy as np

from matta_jax import storage
from matta_jax.errors import UserError
from matta_jax.tokenizers._base import hash_files, import_library

# Names of the token that ends a text, the likeliest first.
_END_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")


class HFTokenizer:
    """The tokenizer of a `tokenizer.json`. Raises UserError when the file is missing, no tokenizer,
    or without an end of text.
    """

    def __init__(self, file: storage.Path):
        tokenizers = import_library("tokenizers", "hf:")
        if not file.is_file():
            raise UserError(f"data.tokenizer='hf:{file}' is missing; name a tokenizer JSON file")

        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(storage.local_copy(file)))
        except Exception as error:  # The library raises bare Exception for every kind of bad file.
            raise UserError(
                f"data.tokenizer='hf:{file}' is not a tokenizer JSON file ({error})"
            ) from None

        end_ids = [self._tokenizer.token_to_id(token) for token in _END_TOKENS]
        end_ids = [end_id for end_id in end_ids if end_id is not None]
        if not end_ids:
            raise UserError(
                f"data.tokenizer='hf:{file}' has no end-of-text token; it needs one of "
                f"{_END_TOKENS}"
            )

        self.eos_id = end_ids[0]
        self.vocab_size = self._tokenizer.get_vocab_size()
        self.fingerprint = "hf:" + hash_files([file])

    def encode(self, text: str) -> np.ndarray:
        """Returns ids [n] of a text, without those that a template would put around it."""
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, np.uint32)

    def decode(self, ids: np.ndarray) -> str:
        """Returns the text of ids, without separators."""
        return self._tokenizer.decode([int(i) for i in ids if i != self.eos_id])
