"""GPT-2's byte-level BPE, from the two files that OpenAI published."""

import numpy as np

from matta_jax import storage
from matta_jax.errors import UserError
from matta_jax.tokenizers._base import hash_files, import_library

# How GPT-2 cuts a text into words before it merges: contractions, letters, numbers, all else, white
# space. `++` never gives back, which matches the same and is faster than the published `+`.
_WORDS = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
_END_TOKEN = "<|endoftext|>"


class GPT2Tokenizer:
    """The BPE of `vocab.bpe` and `encoder.json` in a folder. Raises UserError when they are missing
    or do not fit together.
    """

    def __init__(self, folder: storage.Path):
        tiktoken = import_library("tiktoken", "gpt2:")
        merges, ids = folder / "vocab.bpe", folder / "encoder.json"
        for file in (merges, ids):
            if not file.is_file():
                raise UserError(
                    f"data.tokenizer='gpt2:{folder}': {file} is missing; it needs vocab.bpe and "
                    "encoder.json"
                )

        ranks = _read_ranks(folder, merges, ids)
        # The end of a text comes after all that merges make.
        self.eos_id = len(ranks)
        self.vocab_size = len(ranks) + 1
        self.fingerprint = "gpt2:" + hash_files([merges, ids])
        self._encoding = tiktoken.Encoding(
            "gpt2",
            pat_str=_WORDS,
            mergeable_ranks=ranks,
            special_tokens={_END_TOKEN: self.eos_id},
        )

    def encode(self, text: str) -> np.ndarray:
        """Returns ids [n] of a text, in which the end token's name is text like any other."""
        return self._encoding.encode_to_numpy(text, disallowed_special=())

    def decode(self, ids: np.ndarray) -> str:
        """Returns the text of ids, without separators."""
        of_text = [int(i) for i in ids if i != self.eos_id]
        return self._encoding.decode(of_text, errors="replace")


def _read_ranks(folder: storage.Path, merges: storage.Path, ids: storage.Path) -> dict[bytes, int]:
    """The id of each token, by its bytes."""
    load = import_library("tiktoken.load", "gpt2:")
    try:
        return load.data_gym_to_mergeable_bpe_ranks(
            str(storage.local_copy(merges)), str(storage.local_copy(ids))
        )
    except (ValueError, AssertionError, KeyError, IndexError):
        raise UserError(
            f"data.tokenizer='gpt2:{folder}': vocab.bpe and encoder.json do not fit together"
        ) from None
