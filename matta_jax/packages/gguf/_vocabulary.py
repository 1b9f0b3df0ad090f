"""The tokenizer of a GGUF file, both ways: its tables, and the rules of a tokenizer.json."""

from typing import Any

from matta_jax import storage
from matta_jax.errors import UserError, shorten
from matta_jax.packages._safetensors import one_line
from matta_jax.packages.gguf._file import GGUFFile
from matta_jax.tokenizers import (
    Piece,
    PieceKind,
    Spaces,
    companions,
    files_digest,
    merges_tokenizer,
    spm_tokenizer,
    tables_of,
)

_NOTE = "matta_jax.note"
_TEMPLATE = "chat_template.jinja"


def vocabulary_fields(spec: str, vocab_size: int) -> dict[str, Any]:
    """The fields of a file that tell a tokenizer; where llama.cpp has none that cuts texts as this
    one does, a vocabulary without texts, and a line that says so.

    Args:
      spec: as `data.tokenizer`.
      vocab_size: of the model.
    """
    # A model can be written without the files of its tokenizer.
    has_files = files_digest(spec) is not None
    tables = tables_of(spec, vocab_size) if has_files else None
    if tables is None:
        reason = "llama.cpp has none that cuts texts as this model's does"
        note = (
            f"model.gguf holds no tokenizer: {reason if has_files else 'its files are missing'}. "
            "Programs that give llama.cpp ids run it, its server and its command line do not."
        )
        return {"tokenizer.ggml.model": "none", _NOTE: note}

    fields: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2" if tables.spaces is None else "llama",
        "tokenizer.ggml.pre": tables.split if tables.spaces is None else "default",
        "tokenizer.ggml.tokens": [piece.text for piece in tables.pieces],
        "tokenizer.ggml.token_type": [int(piece.kind) for piece in tables.pieces],
        "tokenizer.ggml.bos_token_id": tables.start_id,
        "tokenizer.ggml.eos_token_id": tables.end_id,
        # As here, where a model reads its start before each text.
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
    }
    if tables.spaces is None:
        fields["tokenizer.ggml.merges"] = list(tables.merges)
        fields["tokenizer.ggml.add_space_prefix"] = False
    else:
        fields["tokenizer.ggml.scores"] = [float(piece.score) for piece in tables.pieces]
        fields["tokenizer.ggml.add_space_prefix"] = tables.spaces.adds_first
        unknown = [i for i, piece in enumerate(tables.pieces) if piece.kind is PieceKind.UNKNOWN]
        if unknown:
            fields["tokenizer.ggml.unknown_token_id"] = unknown[0]
    if tables.composes:
        fields[_NOTE] = (
            "llama.cpp does not compose characters (NFC) before it cuts a text, as this model's "
            "tokenizer does: texts in another form have other ids there."
        )
    for file in companions(spec):
        if file.name == _TEMPLATE:
            fields["tokenizer.chat_template"] = storage.read_text(file)
    return fields


def vocabulary_note(spec: str, vocab_size: int) -> str | None:
    """Why a file with a tokenizer, as `data.tokenizer`, would have no texts; None: it has them."""
    fields = vocabulary_fields(spec, vocab_size)
    return fields[_NOTE] if fields["tokenizer.ggml.model"] == "none" else None


def texts_note(file: GGUFFile) -> str | None:
    """What a file's vocabulary cannot do, in a line; None: it does all."""
    return file.fields.get(_NOTE)


def holds_texts(file: storage.Path) -> bool:
    """Whether a file's vocabulary has texts, which llama.cpp's server needs."""
    return GGUFFile(file).fields.get("tokenizer.ggml.model", "none") != "none"


def gguf_tokenizer(file: storage.Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The rules of a file's tokenizer, as tokenizer.json has them, and by name the texts of files
    beside it: a chat template, and what begins and ends a text. Raises UserError for a kind that is
    not known.
    """
    fields = GGUFFile(file).fields
    kind = fields.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama") or "tokenizer.ggml.tokens" not in fields:
        raise UserError(
            f"gguf={str(file)!r}: tokenizer.ggml.model={shorten(kind)} is not supported, only gpt2 "
            "and llama; name the model's tokenizer by --tokenizer"
        )
    try:
        return _rules(fields), _companions(fields)
    except UserError:
        raise
    # A file from outside: a field may be missing, of any type, or of another length.
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"gguf={str(file)!r}: its tokenizer is damaged ({one_line(error)}); fetch the file "
            "again, or name the model's tokenizer by --tokenizer"
        ) from None


def _companions(fields: dict[str, Any]) -> dict[str, str]:
    """The texts of files beside a tokenizer.json, by name, as transformers writes them."""
    tokens = fields["tokenizer.ggml.tokens"]
    ids, names = {}, {}
    for side in ("bos", "eos"):
        token_id = fields.get(f"tokenizer.ggml.{side}_token_id")
        if token_id is not None and 0 <= token_id < len(tokens):
            ids[f"{side}_token_id"] = int(token_id)
            names[f"{side}_token"] = tokens[token_id]
    texts = {}
    if ids:
        texts["generation_config.json"] = storage.json_text(ids)
        # Of any family: the class that reads a tokenizer.json as it is.
        config = names | {"tokenizer_class": "PreTrainedTokenizerFast"}
        texts["tokenizer_config.json"] = storage.json_text(config)
    template = fields.get("tokenizer.chat_template")
    return texts | ({_TEMPLATE: template} if isinstance(template, str) else {})


def _rules(fields: dict[str, Any]) -> dict[str, Any]:
    """The rules of a tokenizer of the kind `gpt2` or `llama`."""
    tokens = fields["tokenizer.ggml.tokens"]
    scores = fields.get("tokenizer.ggml.scores", [0.0] * len(tokens))
    kinds = fields.get("tokenizer.ggml.token_type", [PieceKind.NORMAL] * len(tokens))
    pieces = [
        Piece(text, score, PieceKind(number))
        for text, score, number in zip(tokens, scores, kinds, strict=True)
    ]

    has_merges = fields["tokenizer.ggml.model"] == "gpt2"
    start_id = None
    if fields.get("tokenizer.ggml.add_bos_token", not has_merges):
        start_id = fields.get("tokenizer.ggml.bos_token_id")
    if has_merges:
        split = fields.get("tokenizer.ggml.pre", "gpt-2")
        return merges_tokenizer(pieces, fields["tokenizer.ggml.merges"], split, start_id)
    spaces = Spaces(
        adds_first=fields.get("tokenizer.ggml.add_space_prefix", True),
        collapses=fields.get("tokenizer.ggml.remove_extra_whitespaces", False),
    )
    return spm_tokenizer(pieces, spaces, start_id)
