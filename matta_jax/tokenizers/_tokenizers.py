"""Tokenizers behind one small interface: bytes, GPT-2's BPE from local files, and any Hugging Face
tokenizer JSON.
"""

import hashlib
import json
import pathlib
from typing import Protocol

import numpy as np

from matta_jax.errors import UserError, did_you_mean

_END_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")

_PROBE = "The dog's 12 naïve friends,\n\n  don't they? E=mc² 東京 \U0001f600\t"


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


class _GPT2Tokenizer:
    def __init__(self, folder: pathlib.Path):
        tiktoken = _import("tiktoken", "gpt2:")
        files = [folder / "vocab.bpe", folder / "encoder.json"]
        for file in files:
            if not file.is_file():
                raise UserError(
                    f"data.tokenizer='gpt2:{folder}': {file} is missing; it needs vocab.bpe and "
                    "encoder.json"
                )
        from tiktoken.load import data_gym_to_mergeable_bpe_ranks

        try:
            ranks = data_gym_to_mergeable_bpe_ranks(str(files[0]), str(files[1]))
        except (ValueError, AssertionError, KeyError, IndexError):
            raise UserError(
                f"data.tokenizer='gpt2:{folder}': vocab.bpe and encoder.json do not fit together"
            ) from None
        self.eos_id = len(ranks)
        self.vocab_size = len(ranks) + 1
        self.fingerprint = "gpt2:" + _hash_files(files)
        pattern = (
            r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
        )
        self._encoding = tiktoken.Encoding(
            "gpt2",
            pat_str=pattern,
            mergeable_ranks=ranks,
            special_tokens={"<|endoftext|>": self.eos_id},
        )

    def encode(self, text: str) -> np.ndarray:
        return self._encoding.encode_to_numpy(text, disallowed_special=())

    def decode(self, ids: np.ndarray) -> str:
        return self._encoding.decode([int(i) for i in ids if i != self.eos_id], errors="replace")


class _HFTokenizer:
    def __init__(self, file: pathlib.Path):
        tokenizers = _import("tokenizers", "hf:")
        if not file.is_file():
            raise UserError(f"data.tokenizer='hf:{file}' is missing; name a tokenizer JSON file")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # The library raises bare Exception for every kind of bad file.
            raise UserError(
                f"data.tokenizer='hf:{file}' is not a tokenizer JSON file ({error})"
            ) from None
        ends = [self._tokenizer.token_to_id(token) for token in _END_TOKENS]
        known = [end for end in ends if end is not None]
        if not known:
            raise UserError(
                f"data.tokenizer='hf:{file}' has no end-of-text token; it needs one of "
                f"{_END_TOKENS}"
            )
        self.eos_id = known[0]
        self.vocab_size = self._tokenizer.get_vocab_size()
        self.fingerprint = "hf:" + _hash_files([file])

    def encode(self, text: str) -> np.ndarray:
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, np.uint32)

    def decode(self, ids: np.ndarray) -> str:
        return self._tokenizer.decode([int(i) for i in ids if i != self.eos_id])


def make_tokenizer(spec: str) -> Tokenizer:
    """Returns the tokenizer that `data.tokenizer` names. Raises UserError for an unknown one or
    missing files.
    """
    kind, _, rest = spec.partition(":")
    if spec == "byte":
        return ByteTokenizer()
    if kind == "gpt2" and rest:
        return _GPT2Tokenizer(pathlib.Path(rest))
    if kind == "hf" and rest:
        return _HFTokenizer(pathlib.Path(rest))
    hint = did_you_mean(kind, ("byte", "gpt2", "hf"))
    raise UserError(f"data.tokenizer={spec!r} must be byte, gpt2:FOLDER or hf:FILE.json{hint}")


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """A hash of what a tokenizer does, whatever files it comes from: the text of each id, and the
    ids of a probe.
    """
    digest = hashlib.blake2b(digest_size=16)
    for i in range(tokenizer.vocab_size):
        digest.update(tokenizer.decode(np.array([i])).encode() + b"\0")
    ids = np.asarray(tokenizer.encode(_PROBE), np.int64)
    digest.update(json.dumps([tokenizer.vocab_size, tokenizer.eos_id, ids.tolist()]).encode())
    return digest.hexdigest()


def _hash_files(files: list[pathlib.Path]) -> str:
    return hashlib.blake2b(
        b"".join(file.read_bytes() for file in files), digest_size=16
    ).hexdigest()


def _import(name: str, spec: str):
    try:
        return __import__(name)
    except ImportError:
        raise UserError(
            f"data.tokenizer={spec!r} needs the package {name}: pip install 'matta_jax[tokenizers]'"
        ) from None
