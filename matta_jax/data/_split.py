"""The training and the held-out side of a run's data, of whatever kind its model reads."""

import dataclasses

from matta_jax.config import Config
from matta_jax.data._corpora import Corpus
from matta_jax.data._examples import ExampleSet, read_examples
from matta_jax.data._windows import Windows, corpus_windows, split_windows
from matta_jax.errors import UserError
from matta_jax.tokenizers import Tokenizer, make_tokenizer


def split_data(
    config: Config, tokenizer: Tokenizer | None = None, *, held_out: bool
) -> Windows | ExampleSet:
    """Returns the training or the held-out windows of a language model, or examples of a scorer.

    A stream's training side is its whole, in order; what the run leaves over is held out.

    Raises:
      UserError: nothing on this side of the split, files that cannot be read, or a stream that is
        too short.
    """
    data, tokenizer = config.data, tokenizer or make_tokenizer(config.data.tokenizer)
    own_eval = held_out and data.eval_source is not None
    source = data.eval_source if own_eval else data.source
    assert source is not None
    if data.stream and not own_eval:
        whole = _whole(source, config, tokenizer)
        return _left_over(whole, config, tokenizer) if held_out else _checked_stream(whole, config)
    if config.model.name == "scorer":
        side = None if data.eval_source is not None else held_out
        return read_examples(source, data, config.model, tokenizer, held_out=side)
    return split_windows(data, tokenizer, held_out=held_out)


def glob_data(
    config: Config, where: str, tokenizer: Tokenizer | None = None
) -> Windows | ExampleSet:
    """Returns the windows or examples of the files that match a pattern. Raises UserError as
    `split_data` does.
    """
    return _whole(f"text:{where}", config, tokenizer or make_tokenizer(config.data.tokenizer))


def _whole(source: str, config: Config, tokenizer: Tokenizer) -> Windows | ExampleSet:
    data = config.data
    if config.model.name == "scorer":
        return read_examples(source, data, config.model, tokenizer)
    corpus = Corpus(source, data.text_field, data.tfds_dir)
    return corpus_windows(corpus, tokenizer, seq_len=data.seq_len, cache_dir=data.cache_dir)


def _checked_stream(whole: Windows | ExampleSet, config: Config) -> Windows | ExampleSet:
    data, steps = config.data, config.train.num_steps
    left = len(whole) - steps * data.batch_size
    if left < (data.eval_source is None):
        fits = (len(whole) - (data.eval_source is None)) // data.batch_size
        mend = f"train.num_steps={fits} at most" if fits else "a smaller data.batch_size"
        raise UserError(
            f"train.num_steps={steps} x data.batch_size={data.batch_size} need "
            f"{steps * data.batch_size} of the "
            f"{len(whole)} examples that data.source={data.source!r} streams once, and some left "
            "over to evaluate on; "
            f"use {mend}, or name data.eval_source"
        )
    return whole


def _left_over(
    whole: Windows | ExampleSet, config: Config, tokenizer: Tokenizer
) -> Windows | ExampleSet:
    start = config.train.num_steps * config.data.batch_size
    _checked_stream(whole, config)
    if isinstance(whole, ExampleSet):
        return whole.part(start)
    tokens = whole.tokens[start * whole.seq_len :]
    return dataclasses.replace(
        whole,
        tokens=tokens,
        num_bytes=len(tokenizer.decode(tokens[1:]).encode()),
        fingerprint=f"{whole.fingerprint}[{start}:]",
    )
