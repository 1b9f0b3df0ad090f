"""What a model that writes reads first: the tokens of a prompt, and which ids have a token."""

import numpy as np
from absl import logging

from matta_jax.errors import UserError, shorten
from matta_jax.packages import Model
from matta_jax.tokenizers import Tokenizer


def check_writes(model: Model) -> None:
    """Raises UserError for a model that is no language model."""
    if model.reads_examples:
        where = next(iter(model.origin.values()))
        noun = model.config.model.a_noun
        raise UserError(f"{where} is {noun}, and writes no text; name a language model")


def started_ids(tokenizer: Tokenizer, prompt: str) -> tuple[int, ...]:
    """The ids that a model reads of a prompt, after that of a start: it begins a document, and
    gives an empty prompt a token to read. Raises UserError for a text that is not UTF-8.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UserError(f"prompt={shorten(prompt)} is not UTF-8; convert it") from None
    return (tokenizer.start_id, *prompt_ids(tokenizer, prompt).tolist())


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> np.ndarray:
    """Returns the ids of a prompt, after a warning where they do not hold all of it."""
    ids = tokenizer.encode(prompt)
    if not tokenizer.survives(prompt, ids):
        logging.warning(
            "prompt=%s does not survive encode and decode: the model reads %s",
            shorten(prompt),
            shorten(tokenizer.decode(ids)),
        )
    return ids


def ids_with_token(tokenizer: Tokenizer, vocab_size: int) -> np.ndarray | None:
    """Returns which ids [vocab_size] of a model have a token, for `generate_ids`; None where all
    have.
    """
    allowed = np.zeros(vocab_size, bool)
    allowed[: tokenizer.vocab_size] = tokenizer.has_token
    return None if allowed.all() else allowed
