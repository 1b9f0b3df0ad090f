"""Any tokenizer of Hugging Face's library, from its JSON file."""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from matta_jax import storage
from matta_jax.errors import UserError
from matta_jax.tokenizers._base import (
    Tokenizer,
    first_line,
    hash_files,
    import_library,
    mark_ids,
    read_vocabulary,
)

# Names of the token that ends a text, the likeliest first.
END_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")


class HFTokenizer(Tokenizer):
    """The tokenizer of a `tokenizer.json`. Raises UserError when the file is missing, no tokenizer,
    or without an end of text.

    What the file says of a call, not of the tokenizer, is not obeyed: truncation, padding, dropout
    of merges, special tokens that are found in a text.
    """

    def __init__(self, file: storage.Path):
        self.name = f"hf:{file}"
        tokenizers = import_library("tokenizers", "hf:")
        if not file.is_file():
            raise UserError(f"data.tokenizer='hf:{file}' is missing; name a tokenizer JSON file")

        rules = _without_call_options(read_vocabulary(file, self.name))
        self._rules = storage.json_text(rules)
        with _one_line(self.name, "is not a tokenizer JSON file"):
            self._tokenizer = tokenizers.Tokenizer.from_str(self._rules)
            self._tokenizer.encode_special_tokens = True
            vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
            # Of no text: what is there is what the file's template puts around one.
            framing_ids = self._tokenizer.encode("", add_special_tokens=True).ids
            added = self._tokenizer.get_added_tokens_decoder()
        self._control_ids = {token.content: i for i, token in added.items() if token.special}

        end_ids = [vocabulary[token] for token in END_TOKENS if token in vocabulary]
        if not end_ids:
            raise UserError(
                f"data.tokenizer='hf:{file}' has no end-of-text token; it needs one of {END_TOKENS}"
            )

        self.eos_id = end_ids[0]
        self._start_id = framing_ids[0] if framing_ids else self.eos_id
        # Not the number of tokens: a vocabulary may have holes.
        self._has_token = mark_ids(list(vocabulary.values()), self.name)
        self.vocab_size = len(self._has_token)
        self.fingerprint = "hf:" + hash_files([file])
        if self._start_id != self.eos_id:
            # Caches from before starts were known lack them.
            self.fingerprint += f":{self._start_id}"
        self._unknown_id = _unknown_id(rules, vocabulary)

    @property
    def start_id(self) -> int:
        """The first id of the file's template; the end of text where it has none."""
        return self._start_id

    @property
    def has_token(self) -> np.ndarray:
        """Of each id [vocab_size], whether it has a token."""
        return self._has_token

    @property
    def control_ids(self) -> Mapping[str, int]:
        """Those of the file's special tokens."""
        return self._control_ids

    def encode_template(self, text: str) -> np.ndarray:
        """Returns ids [n] of a template that was filled in: names of control tokens stand for them.
        Raises UserError for a text that the tokenizer has no tokens for and refuses.
        """
        with _one_line(self.name, "cannot encode a template"):
            ids = self._that_obeys.encode(text, add_special_tokens=False).ids
        return np.asarray(ids, np.uint32)

    @functools.cached_property
    def _that_obeys(self) -> Any:
        """The library's tokenizer, which takes names of control tokens for them."""
        tokenizers = import_library("tokenizers", "hf:")
        return tokenizers.Tokenizer.from_str(self._rules)

    def known_text(self, ids: np.ndarray) -> str:
        """The text of ids, without the token for the unknown."""
        ids = np.asarray(ids, np.int64)
        return self.decode(ids[ids != self._unknown_id])

    def survives(self, text: str, ids: np.ndarray) -> bool:
        """Whether the ids of a text hold all of it."""
        return self._unknown_id not in np.asarray(ids) and super().survives(text, ids)

    def _ids_of(self, text: str) -> np.ndarray:
        with _one_line(self.name, "cannot encode a text"):
            # Without those that a template would put around it.
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return np.asarray(ids, np.uint32)

    def _text_of(self, ids: list[int]) -> str:
        with _one_line(self.name, "cannot decode ids"):
            return self._tokenizer.decode(ids)


def _without_call_options(rules: dict[str, Any]) -> dict[str, Any]:
    rules = rules | {"truncation": None, "padding": None}
    model = rules.get("model")
    if isinstance(model, dict) and "dropout" in model:
        rules["model"] = model | {"dropout": None}

    added = rules.get("added_tokens")
    if isinstance(added, list):
        # Found in a text, an end token that is not special would end the document.
        rules["added_tokens"] = [
            token | {"special": True}
            if isinstance(token, dict) and token.get("content") in END_TOKENS
            else token
            for token in added
        ]
    return rules


def _unknown_id(rules: dict[str, Any], vocabulary: dict[str, int]) -> int:
    """The id of what the vocabulary lacks; -1 where there is none."""
    model = rules.get("model")
    if not isinstance(model, dict):
        return -1
    by_id = model.get("unk_id")
    if isinstance(by_id, int):
        return by_id
    by_name = model.get("unk_token")
    return vocabulary.get(by_name, -1) if isinstance(by_name, str) else -1


@contextlib.contextmanager
def _one_line(name: str, what: str) -> Iterator[None]:
    """Turns the library's failures into a UserError."""
    try:
        yield
    # The library raises bare Exception for every kind of bad file, and a panic of its own language,
    # which is none.
    except BaseException as error:
        is_panic = type(error).__name__ == "PanicException"
        if not isinstance(error, Exception) and not is_panic:
            raise
        raise UserError(
            f"data.tokenizer={name!r} {what} ({first_line(error)}); mend or replace the file"
        ) from None
