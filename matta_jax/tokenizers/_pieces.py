"""A `tokenizer.json` out of the tables of other formats: SentencePiece's, and GGUF files'."""

import dataclasses
import enum
from collections.abc import Sequence
from typing import Any

from matta_jax import storage
from matta_jax.errors import UserError, shorten
from matta_jax.tokenizers._base import first_line, import_library

_SPACE = "▁"
# On which rules are compared with the library that they are taken from.
_PROBES = (
    "Once upon a time, there were 3 cats.",
    "  two  spaces, and\na line\t\twith tabs ",
    "Ünïcode: é, ﬁ, ², 中文, 🙂",
    "def f(x):\n    return x ** 2\n",
)
# What splits a text before merges, by llama.cpp's name of it; as in the models' own files.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [{"type": "ByteLevel", "use_regex": True}],
    "smollm": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "use_regex": True},
    ],
    "llama-bpe": [
        {"type": "Split", "pattern": {"Regex": _LLAMA3 % r"\p{N}{1,3}"}},
        {"type": "ByteLevel", "use_regex": False},
    ],
    "qwen2": [
        {"type": "Split", "pattern": {"Regex": _LLAMA3 % r"\p{N}"}},
        {"type": "ByteLevel", "use_regex": False},
    ],
}
NORMALIZED = {"qwen2": {"type": "NFC"}}


class PieceKind(enum.IntEnum):
    """What a piece is, as SentencePiece and GGUF number it."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER = 4
    UNUSED = 5
    BYTE = 6


@dataclasses.dataclass(frozen=True)
class Piece:
    """An entry of a vocabulary."""

    text: str
    score: float = 0.0
    kind: PieceKind = PieceKind.NORMAL


@dataclasses.dataclass(frozen=True)
class Spaces:
    """What SentencePiece does to a text before it is cut.

    Attributes:
      adds_first: a space in front.
      collapses: several spaces become one, those at the ends none.
      is_nmt: tabs and ends of lines become spaces, and control characters nothing.
      is_nfkc: characters are normalised by NFKC.
    """

    adds_first: bool = True
    collapses: bool = False
    is_nmt: bool = False
    is_nfkc: bool = False

    def normalizers(self) -> list[dict[str, Any]]:
        """As the tokenizers library has them."""
        stages: list[dict[str, Any]] = []
        if self.is_nmt:
            stages.append({"type": "Nmt"})
        if self.is_nfkc:
            stages.append({"type": "NFKC"})
        if self.collapses:
            # Spaces alone: a line's end stays.
            for pattern, content in ((r"\A +| +\z", ""), (" {2,}", " ")):
                stage = {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}
                stages.append(stage)
        if self.adds_first:
            stages.append({"type": "Prepend", "prepend": _SPACE})
        stages.append({"type": "Replace", "pattern": {"String": " "}, "content": _SPACE})
        return stages


def spm_tokenizer(
    pieces: Sequence[Piece], spaces: Spaces, start_id: int | None = None
) -> dict[str, Any]:
    """The rules of a SentencePiece model of merges (`model_type=bpe`): two pieces merge in the
    order of the score of what they become.

    Args:
      pieces: by id.
      spaces: what is done to a text before.
      start_id: stands before each text; None: nothing does.
    """
    vocabulary = {piece.text: i for i, piece in enumerate(pieces)}
    scores = {piece.text: piece.score for piece in pieces}
    merges = []
    for piece in pieces:
        for cut in range(1, len(piece.text)):
            first, second = piece.text[:cut], piece.text[cut:]
            if first in vocabulary and second in vocabulary:
                merges.append((-scores[piece.text], vocabulary[first], vocabulary[second]))
    texts = [piece.text for piece in pieces]
    unknown = [piece.text for piece in pieces if piece.kind is PieceKind.UNKNOWN]
    has_bytes = any(piece.kind is PieceKind.BYTE for piece in pieces)

    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if spaces.adds_first:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "version": "1.0",
        "added_tokens": _added(pieces),
        "normalizer": {"type": "Sequence", "normalizers": spaces.normalizers()},
        "post_processor": _template(pieces, start_id),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "unk_token": unknown[0] if unknown else None,
            "fuse_unk": True,
            "byte_fallback": has_bytes,
            "vocab": vocabulary,
            "merges": [[texts[first], texts[second]] for _, first, second in sorted(merges)],
        },
    }


def merges_tokenizer(
    pieces: Sequence[Piece], merges: Sequence[str], split: str, start_id: int | None = None
) -> dict[str, Any]:
    """The rules of a byte-level BPE, as GGUF files hold it.

    Args:
      pieces: by id.
      merges: each of two texts with a space between, the first ones first.
      split: llama.cpp's name of what splits a text before (`tokenizer.ggml.pre`).
      start_id: stands before each text; None: nothing does.

    Raises:
      UserError: a split that is not known.
    """
    if split not in SPLITS:
        raise UserError(
            f"tokenizer.ggml.pre={shorten(split)} is not known, only {', '.join(SPLITS)}; name "
            "the model's tokenizer.json by --tokenizer=hf:FILE"
        )
    vocabulary = {piece.text: i for i, piece in enumerate(pieces)}
    stages = []
    for stage in SPLITS[split]:
        defaults: dict[str, dict[str, Any]] = {
            "ByteLevel": {"add_prefix_space": False, "trim_offsets": True},
            "Split": {"behavior": "Isolated", "invert": False},
        }
        stages.append({**stage, **defaults.get(stage["type"], {})})
    return {
        "version": "1.0",
        "added_tokens": _added(pieces),
        "normalizer": NORMALIZED.get(split),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": stages},
        "post_processor": _template(pieces, start_id),
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "vocab": vocabulary,
            # llama.cpp undoes a merge that makes no token, and the library refuses it.
            "merges": [
                merge.split(" ") for merge in merges if merge.replace(" ", "", 1) in vocabulary
            ],
            # A word that is a token by itself needs no merges, as in Llama 3's.
            "ignore_merges": split == "llama-bpe",
        },
    }


def _template(pieces: Sequence[Piece], start_id: int | None) -> dict[str, Any] | None:
    """What puts the start before a text."""
    if start_id is None:
        return None
    text = pieces[start_id].text
    start = {"SpecialToken": {"id": text, "type_id": 0}}
    single = [start, {"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {text: {"id": text, "ids": [start_id], "tokens": [text]}},
    }


def _added(pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    """Tokens that are no text."""
    special = (PieceKind.CONTROL, PieceKind.UNKNOWN)
    switches = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return [
        {"id": i, "content": piece.text, "special": piece.kind in special, **switches}
        for i, piece in enumerate(pieces)
        if piece.kind in (*special, PieceKind.USER)
    ]


def read_spm(file: storage.Path) -> dict[str, Any]:
    """The rules of a SentencePiece `.model` file. Raises UserError when it is missing, damaged, or
    not made of merges.
    """
    library = import_library("sentencepiece", ".model of")
    if not file.is_file():
        raise UserError(f"tokenizer={str(file)!r} is missing; name a SentencePiece .model file")
    try:
        processor = library.SentencePieceProcessor(model_proto=storage.read_bytes(file))
    except Exception as error:  # The library raises several kinds for damaged files.
        raise UserError(
            f"tokenizer={str(file)!r} is not a SentencePiece model ({first_line(error)}); name "
            "another"
        ) from None

    pieces = []
    for i in range(processor.vocab_size()):
        kind = PieceKind.NORMAL
        for name, is_kind in {
            PieceKind.UNKNOWN: processor.is_unknown,
            PieceKind.CONTROL: processor.is_control,
            PieceKind.UNUSED: processor.is_unused,
            PieceKind.BYTE: processor.is_byte,
        }.items():
            if is_kind(i):
                kind = name
        pieces.append(Piece(processor.id_to_piece(i), processor.get_score(i), kind))
    start_id = processor.bos_id() if processor.bos_id() >= 0 else None
    rules = spm_tokenizer(pieces, _spaces_of(processor), start_id)
    _check_alike(rules, processor, file)
    return rules


def _spaces_of(processor: Any) -> Spaces:
    """What a SentencePiece model does to texts, as seen on short ones: the library does not say."""
    return Spaces(
        adds_first=processor.normalize("a").startswith(_SPACE),
        collapses=2 * _SPACE not in processor.normalize("a  a"),
        is_nmt="\t" not in processor.normalize("a\ta"),
        is_nfkc="2" in processor.normalize("\N{SUPERSCRIPT TWO}"),
    )


def _check_alike(rules: dict[str, Any], processor: Any, file: storage.Path) -> None:
    """Raises UserError where the rules give other ids than the library itself: it is a model of
    another type, or one that normalises texts in a way of its own.
    """
    scores = [processor.get_score(i) for i in range(processor.vocab_size())]
    if not all(score.is_integer() for score in scores):
        raise UserError(
            f"tokenizer={str(file)!r} is not made of merges (its scores are no ranks); name a "
            "tokenizer.json of it by --tokenizer=hf:FILE"
        )
    tokenizer = import_library("tokenizers", "hf:").Tokenizer.from_str(storage.json_text(rules))
    for text in _PROBES:
        if tokenizer.encode(text, add_special_tokens=False).ids != processor.encode(text):
            raise UserError(
                f"tokenizer={str(file)!r} cannot be read as merges alone (it cuts {text!r} "
                "otherwise); name a tokenizer.json of it by --tokenizer=hf:FILE"
            )
