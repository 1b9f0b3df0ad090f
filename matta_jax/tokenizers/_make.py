"""The tokenizer that a config names."""

from matta_jax import storage
from matta_jax.errors import UserError, did_you_mean, shorten
from matta_jax.tokenizers._base import Tokenizer
from matta_jax.tokenizers._byte import ByteTokenizer
from matta_jax.tokenizers._gpt2 import GPT2Tokenizer
from matta_jax.tokenizers._hf import HFTokenizer


def make_tokenizer(spec: str) -> Tokenizer:
    """Returns the tokenizer that `data.tokenizer` names. Raises UserError for an unknown one or
    missing files.
    """
    # Outside a config nothing has checked it, and each error below names it.
    text = spec if isinstance(spec, str) and spec.splitlines() == [spec] else ""
    kind, _, where = text.partition(":")
    if spec == "byte":
        return ByteTokenizer()
    if kind == "gpt2" and where:
        return GPT2Tokenizer(storage.path(where))
    if kind == "hf" and where:
        return HFTokenizer(storage.path(where))

    hint = did_you_mean(kind, ("byte", "gpt2", "hf"))
    raise UserError(
        f"data.tokenizer={shorten(spec)} must be byte, gpt2:FOLDER or hf:FILE.json, in one line"
        f"{hint}"
    )


def fitting_tokenizer(spec: str, vocab_size: int) -> Tokenizer:
    """As `make_tokenizer`, for a model of `vocab_size` ids. Raises UserError for a tokenizer of
    more.
    """
    tokenizer = make_tokenizer(spec)
    # More rows than ids are fine: tables are often rounded up for the devices.
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"model.vocab_size={vocab_size} must be at least the {tokenizer.vocab_size} ids of "
            f"data.tokenizer={spec!r}"
        )
    return tokenizer
