"""What every tokenizer does, and what those made from files share."""

import abc
import contextlib
import hashlib
import importlib
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from matta_jax import storage
from matta_jax.errors import UserError, shorten

# No table of embeddings has so many rows.
_MOST_IDS = 2**24
# Of what an error says.
_LONGEST_LINE = 200


class TextIds(NamedTuple):
    """The ids that stand around a text.

    Attributes:
      start: before it.
      end: after it.
    """

    start: int
    end: int


class Tokenizer(abc.ABC):
    """Text to ids and back: the rules that hold of every tokenizer, whatever library or file does
    the work.

    Attributes:
      vocab_size: ids are below it: the largest id + 1.
      eos_id: separates documents; never produced by `encode`.
      fingerprint: changes when the tokenizer does.
      name: as the config names it.
    """

    vocab_size: int
    eos_id: int
    fingerprint: str
    name: str

    @property
    def start_id(self) -> int:
        """Stands before a text: `eos_id`, or what a tokenizer's own template puts there. A model
        reads it before anything else; never produced by `encode`.
        """
        return self.eos_id

    @property
    def text_ids(self) -> TextIds:
        """What stands around a text."""
        return TextIds(self.start_id, self.eos_id)

    @property
    def separator(self) -> np.ndarray:
        """What stands between documents: the end of one, and the start of the next."""
        return np.array(list(dict.fromkeys((self.eos_id, self.start_id))), np.int32)

    def encode(self, text: str) -> np.ndarray:
        """Returns ids [n] of a text, in which names of special tokens are text like any other.
        Raises UserError for an id that is none of the vocabulary's, or a text that the tokenizer
        has no tokens for and refuses.
        """
        ids = np.asarray(self._ids_of(text))
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            raise UserError(
                f"data.tokenizer={self.name!r} makes id {ids.max()} of a text, beyond its "
                f"{self.vocab_size} ids; mend or replace its file"
            )
        # A word may be spelled as the separator: it must not end the document.
        return ids[~np.isin(ids, self.separator)]

    @property
    def control_ids(self) -> Mapping[str, int]:
        """The ids of control tokens, by their names: such as a template puts around a message."""
        return {}

    def encode_template(self, text: str) -> np.ndarray:
        """Returns ids [n] of a template that was filled in: names of control tokens stand for them.
        Raises UserError as `encode`.
        """
        return self.encode(text)

    def decode(self, ids: np.ndarray) -> str:
        """Returns the text of ids, without separators and ids that have no token; broken characters
        become U+FFFD.
        """
        return self._text_of(self._known(ids))

    @property
    def has_token(self) -> np.ndarray:
        """Of each id [vocab_size], whether it has a token."""
        return np.ones(self.vocab_size, bool)

    def survives(self, text: str, ids: np.ndarray) -> bool:
        """Whether the ids of a text hold all of it."""
        return self.decode(ids) == text

    def count_bytes(self, text: str, ids: np.ndarray, *, survives: bool | None = None) -> int:
        """How many UTF-8 bytes of a text its ids hold: all of a text that survives, else those of
        the characters that can be read back, in whatever form and case; what a decoder adds, such
        as spaces, counts as nothing.

        Args:
          text: that was encoded.
          ids: of the text.
          survives: as `survives` has said; None: it is asked, which decodes the ids.
        """
        num_bytes = len(text.encode())
        if survives is None:
            survives = self.survives(text, ids)
        if survives:
            return num_bytes
        # As often as both have a character: one has what was lost, the other what was added.
        common = _characters(text) & _characters(self.known_text(ids))
        kept_bytes = sum(count * len(character.encode()) for character, count in common.items())
        return min(num_bytes, self.num_bytes(ids), kept_bytes)

    def num_bytes(self, ids: np.ndarray) -> int:
        """How many UTF-8 bytes ids stand for; a token for the unknown stands for none."""
        return len(self.known_text(ids).encode())

    def known_text(self, ids: np.ndarray) -> str:
        """The text of ids, without tokens for the unknown."""
        return self.decode(ids)

    @abc.abstractmethod
    def _ids_of(self, text: str) -> np.ndarray | Sequence[int]: ...

    @abc.abstractmethod
    def _text_of(self, ids: list[int]) -> str: ...

    def _known(self, ids: np.ndarray) -> list[int]:
        """Those of ids that have a token and are no separator."""
        ids = np.asarray(ids, np.int64)
        ids = ids[(ids >= 0) & (ids < self.vocab_size) & ~np.isin(ids, self.separator)]
        return ids[self.has_token[ids]].tolist()


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


def read_vocabulary(file: storage.Path, spec: str) -> dict[str, Any]:
    """Returns the object of a JSON file. Raises UserError where it cannot be read or is none."""
    with reading(file, spec):
        value = storage.read_json(file)
    if not isinstance(value, dict):
        raise UserError(
            f"data.tokenizer={spec!r}: {file} is {type(value).__name__}, and must be a JSON object"
        )
    return value


@contextlib.contextmanager
def reading(file: storage.Path, spec: str) -> Iterator[None]:
    """Turns the failures of reading a tokenizer's file into a UserError."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise UserError(
            f"data.tokenizer={spec!r}: {file} cannot be read ({first_line(error)}); mend or "
            "replace it"
        ) from None


def mark_ids(ids: Sequence[Any], spec: str) -> np.ndarray:
    """Returns of each id up to the largest whether it is among `ids`. Raises UserError for what is
    no id.
    """
    for i in ids:
        # By `type`: true and false are ints to isinstance.
        if type(i) is not int or not 0 <= i < _MOST_IDS:
            raise UserError(
                f"data.tokenizer={spec!r} has the id {shorten(i)}; ids must be whole numbers from "
                f"0 to {_MOST_IDS - 1}"
            )
    marks = np.zeros(max(ids, default=-1) + 1, bool)
    marks[list(ids)] = True
    return marks


def first_line(error: BaseException) -> str:
    """What an error says, in one line that is short: a library may quote a whole file."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    line = "".join(letter if letter.isprintable() else "?" for letter in lines[0])
    return line if len(line) <= _LONGEST_LINE else line[: _LONGEST_LINE - 3] + "..."


def _characters(text: str) -> Counter[str]:
    """How often a text has each character, in one form and case."""
    return Counter(unicodedata.normalize("NFKC", text).casefold())
