"""What a model that writes reads first: the tokens of a prompt, and which ids have a token."""

import dataclasses

import numpy as np
from absl import logging

from matta_jax.errors import UserError, shorten
from matta_jax.packages import Model
from matta_jax.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The ids of an engine's models.

    Attributes:
      eos_id: the separator, which ends a text.
      tokenizer: makes text of tokens; None: there are tokens alone.
      allowed: bool [V], ids that may be drawn; None: all.
      end_ids: more that end a text.
    """

    eos_id: int
    tokenizer: Tokenizer | None = None
    allowed: np.ndarray | None = None
    end_ids: tuple[int, ...] = ()

    @property
    def all_ends(self) -> tuple[int, ...]:
        """All ids that end a text."""
        return (self.eos_id, *self.end_ids)


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
    _check_utf8(prompt)
    return (tokenizer.start_id, *prompt_ids(tokenizer, prompt).tolist())


def _check_utf8(prompt: str) -> None:
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UserError(f"prompt={shorten(prompt)} is not UTF-8; convert it") from None


def template_ids(tokenizer: Tokenizer, prompt: str) -> tuple[int, ...]:
    """The ids that a model reads of a template that was filled in, in which names of control tokens
    stand for them. It begins as the template says, or as any prompt where that begins with none.
    Raises UserError for a text that is not UTF-8.
    """
    if not tokenizer.control_ids:
        return started_ids(tokenizer, prompt)
    _check_utf8(prompt)
    ids = tuple(tokenizer.encode_template(prompt).tolist())
    if ids and ids[0] in tokenizer.control_ids.values():
        return ids
    return (tokenizer.start_id, *ids)


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
    """Returns which ids [vocab_size] of a model have a token; None where all have."""
    allowed = np.zeros(vocab_size, bool)
    allowed[: tokenizer.vocab_size] = tokenizer.has_token
    return None if allowed.all() else allowed
