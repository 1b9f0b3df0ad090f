"""A tokenizer as the tables that GGUF files hold, where llama.cpp cuts texts by them as we do."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matta_jax import storage
from matta_jax.tokenizers._base import Tokenizer, import_library, read_vocabulary
from matta_jax.tokenizers._gpt2 import byte_of_character
from matta_jax.tokenizers._hf import END_TOKENS
from matta_jax.tokenizers._make import make_tokenizer
from matta_jax.tokenizers._pieces import (
    NORMALIZED,
    SPLITS,
    Piece,
    PieceKind,
    Spaces,
    merges_tokenizer,
    spm_tokenizer,
)

_END_TOKEN = "<|endoftext|>"
_GPT2_SPLIT = "gpt-2"
# llama.cpp asks for a merge; these bytes are in no UTF-8, and so never merged.
_NO_MERGE = "ÿ ÿ"
# On which tables are compared with the tokenizer that they are of.
_PROBES = (
    "Once upon a time, there were 3 cats, and 12345 or 1 000 000 dogs.",
    "I'll say WE'RE here; don't, he'd, you've: 'quoted'!",
    " two  spaces,   and\na line\r\n\n\n\t\twith tabs  \n  ",
    "Ünïcode: é, ﬁ, ², 中文, 🙂, Ελλάδα 2², e\u0301",
    "def f(x):\n    return x ** 2  # 100%\n",
    "",
)


@dataclasses.dataclass(frozen=True)
class Tables:
    """A vocabulary, and what a text is cut by.

    Attributes:
      pieces: by id.
      start_id: stands before a text.
      end_id: stands after it.
      merges: of a byte-level BPE, each of two texts with a space between.
      split: llama.cpp's name of what splits a text before merges.
      spaces: of pieces with scores, what is done to a text before; None: these are merges.
      composes: whether characters of two parts become one before (NFC), which llama.cpp leaves out.
    """

    pieces: Sequence[Piece]
    start_id: int
    end_id: int
    merges: Sequence[str] = ()
    split: str = _GPT2_SPLIT
    spaces: Spaces | None = None
    composes: bool = False


def tables_of(spec: str, vocab_size: int) -> Tables | None:
    """The tables of a tokenizer; None where llama.cpp has none that cut texts as it does.

    Args:
      spec: as `data.tokenizer`.
      vocab_size: of the model, whose ids without a token get a text of no use.

    Raises:
      UserError: its files are missing or damaged.
    """
    tokenizer = make_tokenizer(spec)
    kind, _, where = spec.partition(":")
    if kind == "byte":
        return _byte_tables(tokenizer, vocab_size)
    if kind == "gpt2":
        return _gpt2_tables(tokenizer, storage.path(where), vocab_size)
    rules = read_vocabulary(storage.path(where), spec)
    for tables in _candidates(rules, tokenizer, vocab_size):
        if _is_alike(tables, tokenizer):
            return tables
    return None


def _byte_tables(tokenizer: Tokenizer, vocab_size: int) -> Tables:
    """Bytes, as a BPE that never merges."""
    pieces = {byte: Piece(letter) for letter, byte in byte_of_character().items()}
    pieces[tokenizer.eos_id] = Piece(_END_TOKEN, kind=PieceKind.CONTROL)
    return _tables(pieces, tokenizer, vocab_size, merges=[_NO_MERGE])


def _gpt2_tables(tokenizer: Tokenizer, folder: storage.Path, vocab_size: int) -> Tables:
    encoder = read_vocabulary(folder / "encoder.json", tokenizer.name)
    pieces = {i: Piece(text) for text, i in encoder.items()}
    pieces[tokenizer.eos_id] = Piece(_END_TOKEN, kind=PieceKind.CONTROL)
    lines = storage.read_text(folder / "vocab.bpe").splitlines()
    merges = [line for line in lines if line.strip() and not line.startswith("#version")]
    return _tables(pieces, tokenizer, vocab_size, merges=merges or [_NO_MERGE])


def _tables(
    pieces: Mapping[int, Piece],
    tokenizer: Tokenizer,
    vocab_size: int,
    **fields: Any,
) -> Tables:
    """Tables of so many ids."""
    filled = []
    for i in range(vocab_size):
        filled.append(pieces.get(i) or Piece(f"<|unused_{i}|>", kind=PieceKind.UNUSED))
    return Tables(filled, tokenizer.start_id, tokenizer.eos_id, **fields)


def _candidates(
    rules: Mapping[str, Any], tokenizer: Tokenizer, vocab_size: int
) -> Iterator[Tables]:
    """Tables of a tokenizer.json that may cut as it does, and may not."""
    model = rules.get("model") or {}
    if model.get("type") != "BPE":
        return
    merges = [
        " ".join(merge) if isinstance(merge, list) else merge for merge in model.get("merges", ())
    ]
    kinds = _kinds(rules)
    has_bytes = bool(model.get("byte_fallback"))
    scores = _scores(merges) if has_bytes else {}
    pieces = {}
    for text, i in itertools.chain(model["vocab"].items(), _added(rules)):
        kind = kinds.get(text, PieceKind.NORMAL)
        if has_bytes and len(text) == 6 and text.startswith("<0x"):
            kind = PieceKind.BYTE
        pieces[i] = Piece(text, scores.get(text, 0.0), kind)
    if has_bytes:
        for adds_first in (True, False):
            spaces = Spaces(adds_first=adds_first)
            yield _tables(pieces, tokenizer, vocab_size, spaces=spaces)
        return
    for split in SPLITS:
        composes = split in NORMALIZED
        yield _tables(
            pieces,
            tokenizer,
            vocab_size,
            merges=merges or [_NO_MERGE],
            split=split,
            composes=composes,
        )


def _added(rules: Mapping[str, Any]) -> list[tuple[str, int]]:
    return [(token["content"], token["id"]) for token in rules.get("added_tokens") or ()]


def _kinds(rules: Mapping[str, Any]) -> dict[str, PieceKind]:
    """What tokens are that are not merged, by text."""
    kinds = {}
    for token in rules.get("added_tokens") or ():
        kinds[token["content"]] = PieceKind.CONTROL if token.get("special") else PieceKind.USER
    unknown = rules["model"].get("unk_token")
    if isinstance(unknown, str):
        kinds[unknown] = PieceKind.UNKNOWN
    # They end a text, whatever a file says of them.
    return kinds | {text: PieceKind.CONTROL for text in END_TOKENS if text in kinds}


def _scores(merges: Sequence[str]) -> dict[str, float]:
    """The score of what each merge makes: the first merges have the highest."""
    scores: dict[str, float] = {}
    for rank, merge in enumerate(merges):
        scores.setdefault(merge.replace(" ", "", 1), -float(rank))
    return scores


def _is_alike(tables: Tables, tokenizer: Tokenizer) -> bool:
    """Whether tables cut the probes as their tokenizer does."""
    if tables.spaces is None:
        rules = merges_tokenizer(tables.pieces, tables.merges, tables.split)
    else:
        rules = spm_tokenizer(tables.pieces, tables.spaces)
    library = import_library("tokenizers", tokenizer.name)
    rebuilt = library.Tokenizer.from_str(storage.json_text(rules))
    rebuilt.encode_special_tokens = True
    for text in _PROBES:
        ids = rebuilt.encode(text, add_special_tokens=False).ids
        if ids != tokenizer.encode(text).tolist():
            return False
    return True
