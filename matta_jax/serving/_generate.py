"""Text from a model, by an engine of its own.

Shape letters: B samples, T prompt, S new tokens.
"""

import numpy as np

from matta_jax.errors import UserError
from matta_jax.packages import Model
from matta_jax.serving._completions import Request
from matta_jax.serving._drafts import Draft
from matta_jax.serving._engine import Engine
from matta_jax.serving._prompts import Vocabulary, check_writes, ids_with_token, started_ids
from matta_jax.serving._sampling import Sampling
from matta_jax.tokenizers import conversation_of, fitting_tokenizer

_MOST_SAMPLES = 1024  # Side by side, with a cache each.
_DEFAULT = Sampling()


def generate(
    model: Model,
    prompt: str,
    *,
    num_tokens: int,
    num_samples: int = 1,
    sampling: Sampling = _DEFAULT,
    draft: tuple[Model, int] | None = None,
) -> list[str]:
    """Continues a prompt; a text ends at the separator of documents, or after `num_tokens`.

    A text that outgrows the sequences of the model's training goes on from its last half of one,
    read anew.

    Args:
      model: an extracted model, or a sub-model in place.
      prompt: may be empty: a document begins.
      num_tokens: most tokens of a continuation.
      num_samples: continuations to draw, side by side; at most 1,024.
      sampling: how.
      draft: a smaller sub-model of the same run, in place as `model` is, and how many tokens it
        proposes at once, at most 8. It changes no text.

    Returns:
      The texts of the samples, each with the prompt before it.

    Raises:
      UserError: fewer than one token or sample, too many samples, a model that is a
        scorer, or a draft of another run.

    Examples:
      >>> model = matta_jax.load_model("models/mix")
      >>> [text] = matta_jax.generate(model, "the quick", num_tokens=8)
      >>> text.startswith("the quick")
      True
    """
    if num_samples < 1:
        raise UserError(f"num_samples={num_samples} must be at least 1")
    if num_samples > _MOST_SAMPLES:
        raise UserError(
            f"num_samples={num_samples} must be at most {_MOST_SAMPLES}; draw more with other seeds"
        )
    check_writes(model)
    tokenizer = fitting_tokenizer(model.config.data.tokenizer, model.config.model.vocab_size)
    vocabulary = Vocabulary(
        tokenizer.eos_id,
        allowed=ids_with_token(tokenizer, model.architecture.vocab_size),
        end_ids=conversation_of(tokenizer).end_ids,
    )
    start = np.array(started_ids(tokenizer, prompt), np.int32)
    starts = np.tile(start, (num_samples, 1))
    ids_BT = _write(model, starts, vocabulary, num_tokens, sampling, draft)
    texts = []
    for row in ids_BT:
        # One more separator, so that there is a first one in a text that did not end.
        drawn = np.append(row[len(start) :], tokenizer.eos_id)
        end = len(start) + int(np.argmax(np.isin(drawn, vocabulary.all_ends)))
        # Without the separator that it began with.
        texts.append(tokenizer.decode(row[1:end]))
    return texts


def generate_ids(
    model: Model,
    ids_BT: np.ndarray,
    *,
    num_tokens: int,
    eos_id: int,
    sampling: Sampling = _DEFAULT,
    allowed: np.ndarray | None = None,
) -> np.ndarray:
    """As `generate`, on token ids: returns prompts and continuations [B, T + at most num_tokens].

    A row that has ended goes on with `eos_id`.

    Args:
      model: as of `generate`.
      ids_BT: prompts.
      num_tokens: most tokens of a continuation.
      eos_id: the separator.
      sampling: how.
      allowed: bool [vocab_size], ids that may be drawn; None: all.
    """
    vocabulary = Vocabulary(eos_id, allowed=allowed)
    return _write(model, np.asarray(ids_BT, np.int32), vocabulary, num_tokens, sampling, None)


def _write(
    model: Model,
    ids_BT: np.ndarray,
    vocabulary: Vocabulary,
    num_tokens: int,
    sampling: Sampling,
    draft: tuple[Model, int] | None,
) -> np.ndarray:
    """Prompts and continuations, by an engine with a slot for each."""
    models, proposer = [model], None
    if draft is not None:
        models.append(draft[0])
        proposer = Draft(draft[0].spec, draft[1])
    num_texts = len(ids_BT)
    # Before the engine, which copies the weights: a mistake is told at once.
    requests = [
        Request(tuple(ids), model.spec, num_tokens, sampling, index)
        for index, ids in enumerate(ids_BT.tolist())
    ]
    engine = Engine(models, vocabulary, slots=num_texts, draft=proposer, most_waiting=num_texts)
    completions = [engine.submit(request) for request in requests]
    engine.run()

    longest = max(len(completion.ids) for completion in completions)
    new_BS = np.full((num_texts, longest), vocabulary.eos_id, np.int32)
    for row, completion in zip(new_BS, completions, strict=True):
        row[: len(completion.ids)] = completion.ids
    return np.concatenate([ids_BT, new_BS], axis=1)
