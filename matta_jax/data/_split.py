"""The training and the held-out side of a run's data, of whatever kind its model reads."""

import dataclasses

import numpy as np

from matta_jax.config import MIXTURE, Config, ScorerConfig, VitConfig
from matta_jax.data._corpora import Corpus
from matta_jax.data._examples import ExampleSet, read_examples
from matta_jax.data._images import read_images
from matta_jax.data._mixture import MixedWindows, check_epochs, join_windows
from matta_jax.data._pairs import read_pairs
from matta_jax.data._prepared import KIND, prepared_windows
from matta_jax.data._windows import Windows, corpus_windows, split_windows
from matta_jax.errors import UserError
from matta_jax.tokenizers import Tokenizer, fitting_tokenizer


def split_both(
    config: Config, tokenizer: Tokenizer
) -> tuple[Windows | MixedWindows | ExampleSet, ...]:
    """Returns the training side and the held-out side, as `split_data` does each; what they share
    is read once for its fingerprint.
    """
    _check_max_windows(config)
    data = config.data
    if data.mixture:
        return tuple(split_data(config, tokenizer, held_out=side) for side in (False, True))
    corpus = None
    # Examples have no cache to be found by a fingerprint, and what is prepared tells its own.
    if not config.model.reads_examples and not _is_prepared(data.source):
        corpus = Corpus(data.source, data.text_field, data.tfds_dir).fingerprinted()
    return tuple(
        split_data(config, tokenizer, held_out=held_out, corpus=corpus)
        for held_out in (False, True)
    )


def split_data(
    config: Config,
    tokenizer: Tokenizer | None = None,
    *,
    held_out: bool,
    corpus: Corpus | None = None,
) -> Windows | MixedWindows | ExampleSet:
    """Returns the training or the held-out windows of a language model, or examples of a scorer.

    A stream's training side is its whole, in order; what the run leaves over is held out.
    Otherwise data.max_windows cuts the training side, and that alone.

    Args:
      config: of the run.
      tokenizer: of the run; None: it is made.
      held_out: which side.
      corpus: that of data.source, where it is at hand.

    Raises:
      UserError: nothing on this side of the split, files that cannot be read, or a stream that is
        too short; or data.max_windows for what has no windows.
    """
    data = config.data
    _check_max_windows(config)
    tokenizer = tokenizer or fitting_tokenizer(data.tokenizer, config.model.vocab_size)
    has_eval_source = data.eval_source is not None
    from_eval_source = held_out and has_eval_source
    source = data.eval_source if from_eval_source else data.source
    assert source is not None
    if source == MIXTURE:
        return _split_mixture(config, tokenizer, held_out=held_out)

    if data.stream and not from_eval_source:
        _check_streamed(source)
        stream = _read_all(source, config, tokenizer, corpus)
        _check_stream(stream, config)
        return _after_training(stream, config, tokenizer) if held_out else stream
    if config.model.reads_examples:
        # Each of two sources is a side by itself; one source is split by its examples.
        side = None if has_eval_source else held_out
        return _read_examples(source, config, tokenizer, held_out=side)
    if _is_prepared(source):
        windows = prepared_windows(source, data, tokenizer, held_out=held_out)
    else:
        windows = split_windows(data, tokenizer, held_out=held_out, corpus=corpus)
    windows = dataclasses.replace(windows, apart=data.documents == "apart")
    return windows if held_out else _first(windows, data.max_windows, tokenizer)


def _split_mixture(
    config: Config, tokenizer: Tokenizer, *, held_out: bool
) -> Windows | MixedWindows:
    """A side of all sources of a mixture, each split by itself."""
    data = config.data
    sides = {}
    for component in data.components:
        settings = dataclasses.replace(data, source=component.source, mixture={})
        part = dataclasses.replace(config, data=settings)
        windows = split_data(part, tokenizer, held_out=held_out)
        assert isinstance(windows, Windows)
        sides[component.name] = windows
    if held_out:
        return join_windows(sides)
    mixed = MixedWindows(sides, data.components)
    order = mixed.order(config.train.seed, data.batch_size)
    check_epochs(mixed, order, config.train.num_steps)
    return mixed


def _is_prepared(source: str) -> bool:
    return source.partition(":")[0] == KIND


def _check_max_windows(config: Config) -> None:
    """Refuses data.max_windows where there are no windows to take the first of."""
    if config.data.max_windows is None:
        return
    for has_none, field in (
        (config.model.reads_examples, f"{config.model.a_noun}, which reads examples"),
        (config.data.stream, "data.stream, which reads the source once"),
    ):
        if has_none:
            raise UserError(
                f"data.max_windows={config.data.max_windows} is not for {field}; leave it out"
            )


def _first(windows: Windows, count: int | None, tokenizer: Tokenizer) -> Windows:
    """The first windows of a stream, and their last token, which is predicted alone."""
    if count is None or count >= len(windows):
        return windows

    tokens = windows.tokens[: count * windows.seq_len + 1]
    return dataclasses.replace(
        windows,
        tokens=tokens,
        num_bytes=tokenizer.num_bytes(tokens[1:]),
        # The last may be cut.
        num_documents=int(np.sum(tokens[:-1] == windows.eos_id)),
        fingerprint=f"{windows.fingerprint}[:{count}]",
    )


def _read_examples(
    source: str, config: Config, tokenizer: Tokenizer, *, held_out: bool | None = None
) -> ExampleSet:
    """The images of a classifier, the pairs of an embedder, or the examples of a scorer, whose
    section says what these have.
    """
    if isinstance(config.model, VitConfig):
        seed = config.train.seed
        return read_images(source, config.data, config.model, held_out=held_out, seed=seed)
    if config.model.reads_pairs:
        return read_pairs(source, config.data, tokenizer, held_out=held_out)
    assert isinstance(config.model, ScorerConfig)
    return read_examples(source, config.data, config.model, tokenizer, held_out=held_out)


def glob_data(
    config: Config, where: str, tokenizer: Tokenizer | None = None
) -> Windows | ExampleSet:
    """Returns the windows or examples of the files that match a pattern. Raises UserError as
    `split_data` does.
    """
    tokenizer = tokenizer or fitting_tokenizer(config.data.tokenizer, config.model.vocab_size)
    kind = "images" if config.model.reads_images else "text"
    return _read_all(f"{kind}:{where}", config, tokenizer)


def _read_all(
    source: str, config: Config, tokenizer: Tokenizer, corpus: Corpus | None = None
) -> Windows | ExampleSet:
    data = config.data
    if config.model.reads_examples:
        return _read_examples(source, config, tokenizer)
    corpus = corpus or Corpus(source, data.text_field, data.tfds_dir)
    windows = corpus_windows(corpus, tokenizer, seq_len=data.seq_len, cache_dir=data.cache_dir)
    return dataclasses.replace(windows, apart=data.documents == "apart")


def _check_streamed(source: str) -> None:
    if _is_prepared(source):
        raise UserError(
            f"data.source={source!r} has two sides, and data.stream=True reads one source once; "
            "name the corpus itself, or set data.stream=False"
        )


def _check_stream(stream: Windows | ExampleSet, config: Config) -> None:
    """Refuses a stream that is shorter than the run, which reads each example once."""
    data = config.data
    num_steps = config.train.num_steps
    # Without an evaluation source, at least one example must be left over to evaluate on.
    num_reserved = int(data.eval_source is None)
    num_read = num_steps * data.batch_size
    if len(stream) - num_read >= num_reserved:
        return

    most_steps = (len(stream) - num_reserved) // data.batch_size
    mend = f"train.num_steps={most_steps} at most" if most_steps else "a smaller data.batch_size"
    raise UserError(
        f"train.num_steps={num_steps} x data.batch_size={data.batch_size} need "
        f"{num_read} of the {len(stream)} examples that data.source={data.source!r} streams once, "
        f"and some left over to evaluate on; use {mend}, or name data.eval_source"
    )


def _after_training(
    stream: Windows | ExampleSet, config: Config, tokenizer: Tokenizer
) -> Windows | ExampleSet:
    """The examples of a stream that the run does not read."""
    start = config.train.num_steps * config.data.batch_size
    if isinstance(stream, ExampleSet):
        return stream.part(start)

    tokens = stream.tokens[start * stream.seq_len :]
    return dataclasses.replace(
        stream,
        tokens=tokens,
        num_bytes=tokenizer.num_bytes(tokens[1:]),
        fingerprint=f"{stream.fingerprint}[{start}:]",
    )
