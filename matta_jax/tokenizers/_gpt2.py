"""GPT-2's byte-level BPE, from the two files that OpenAI published."""

from typing import Any

import numpy as np

from matta_jax import storage
from matta_jax.errors import UserError
from matta_jax.tokenizers._base import (
    Tokenizer,
    hash_files,
    import_library,
    mark_ids,
    read_vocabulary,
    reading,
)

# How GPT-2 cuts a text into words before it merges: contractions, letters, numbers, all else, white
# space. `++` never gives back, which matches the same and is faster than the published `+`.
_WORDS = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
_END_TOKEN = "<|endoftext|>"
_START_TOKEN = "<|startoftext|>"


class GPT2Tokenizer(Tokenizer):
    """The BPE of `vocab.bpe` and `encoder.json` in a folder. Raises UserError when they are missing
    or do not fit together.
    """

    def __init__(self, folder: storage.Path):
        self.name = f"gpt2:{folder}"
        tiktoken = import_library("tiktoken", "gpt2:")
        merges, ids = folder / "vocab.bpe", folder / "encoder.json"
        for file in (merges, ids):
            if not file.is_file():
                raise UserError(
                    f"data.tokenizer='gpt2:{folder}': {file} is missing; it needs vocab.bpe and "
                    "encoder.json"
                )

        ranks, self.eos_id = _read_ranks(merges, ids, self.name)
        self._has_token = mark_ids([*ranks.values(), self.eos_id], self.name)
        self.vocab_size = len(self._has_token)
        self.fingerprint = "gpt2:" + hash_files([merges, ids])
        self._encoding = tiktoken.Encoding(
            "gpt2",
            pat_str=_WORDS,
            mergeable_ranks=ranks,
            special_tokens={_END_TOKEN: self.eos_id},
        )

    @property
    def has_token(self) -> np.ndarray:
        """Of each id [vocab_size], whether it has a token."""
        return self._has_token

    def num_bytes(self, ids: np.ndarray) -> int:
        """Those of each token, also of half a character."""
        return len(self._encoding.decode_bytes(self._known(ids)))

    def _ids_of(self, text: str) -> np.ndarray:
        return self._encoding.encode_to_numpy(text, disallowed_special=())

    def _text_of(self, ids: list[int]) -> str:
        return self._encoding.decode(ids, errors="replace")


def _read_ranks(merges: storage.Path, ids: storage.Path, spec: str) -> tuple[dict[bytes, int], int]:
    """The id of each token, by its bytes; and the end token's."""
    # Read here: the library's own reader keeps a copy of each file by its path, and returns that
    # when another file lies there.
    byte_of = byte_of_character()
    encoder = read_vocabulary(ids, spec)
    with reading(merges, spec):
        lines = storage.read_text(merges).splitlines()

    ranks = {bytes([byte]): rank for rank, byte in enumerate(byte_of.values())}
    try:
        for line in lines:
            if line.startswith("#version") or not line.strip():
                continue
            first, second = line.split()
            ranks[_bytes_of(first, byte_of) + _bytes_of(second, byte_of)] = len(ranks)

        # The end of a text comes after all that merges make, where the file does not say.
        end_id: Any = encoder.pop(_END_TOKEN, len(ranks))
        encoder.pop(_START_TOKEN, None)
        is_fitting = ranks == {_bytes_of(token, byte_of): i for token, i in encoder.items()}
    except (ValueError, KeyError):
        is_fitting = False
    if not is_fitting or end_id in ranks.values():
        raise UserError(
            f"data.tokenizer={spec!r}: vocab.bpe and encoder.json do not fit together; copy both "
            "anew"
        )
    return ranks, end_id


def byte_of_character() -> dict[str, int]:
    """The byte that each character of the files stands for, in the order of ids: those that can be
    printed stand for themselves.
    """
    printed = [i for i in range(256) if chr(i).isprintable() and chr(i) != " "]
    unprintable = [i for i in range(256) if i not in printed]
    shifted = {chr(256 + i): byte for i, byte in enumerate(unprintable)}
    return {chr(byte): byte for byte in printed} | shifted


def _bytes_of(token: str, byte_of: dict[str, int]) -> bytes:
    return bytes(byte_of[character] for character in token)
