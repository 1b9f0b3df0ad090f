"""Sets of texts that the library `datasets` of Hugging Face reads: of the hub, or of a folder.

Either as a whole, which the library keeps on the disk, or as they come, file by file.
"""

import contextlib
import functools
import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from matta_jax import storage
from matta_jax.errors import UserError, listed, shorten

_ADDRESS = re.compile(r"hf(-stream)?:(?P<name>[^@]+?)(@(?P<config>[^:]+))?(:(?P<split>[\w.]+))?")
_ROWS = 1024
"""That exist as Python texts at once."""


def hub_texts(source: str, text_field: str, within: tuple[int, int] | None = None) -> Iterator[str]:
    """Yields the text of each example.

    Args:
      source: `hf:NAME[@CONFIG][:SPLIT]`, of the hub or a local folder; the split is `train` by
        default.
      text_field: that holds the text.
      within: start and stop of the examples to read; None: all.

    Raises:
      UserError: the library is not installed, it cannot read the set, or the set has no such field
        of texts.
    """
    examples = _open(source, text_field)
    start, stop = within or (0, len(examples))
    number = start
    for rows in examples.select(range(start, stop)).iter(batch_size=_ROWS):
        for text in rows[text_field]:
            yield _checked(text, source, text_field, f"example {number}")
            number += 1


def hub_count(source: str, text_field: str) -> int:
    """How many examples a set has. Raises UserError as `hub_texts` does."""
    return len(_open(source, text_field))


def hub_version(source: str, text_field: str) -> str:
    """The hash of the files in which the library keeps a set. Raises UserError as `hub_texts` does,
    or OSError where one cannot be read.
    """
    examples = _open(source, text_field)
    digest = hashlib.blake2b(digest_size=16)
    for file in examples.cache_files:
        digest.update(storage.read_bytes(storage.path(file["filename"])))
    return f"{len(examples)} examples {digest.hexdigest()}"


def stream_texts(
    source: str, text_field: str, within: tuple[int, int] | None = None
) -> Iterator[str]:
    """Yields the text of each example, as the files of a set come: nothing stays on the disk.

    Args:
      source: `hf-stream:NAME[@CONFIG][:SPLIT]`, as of `hub_texts`.
      text_field: that holds the text.
      within: start and stop of the set's files to read; None: all.

    Raises:
      UserError: as `hub_texts` does.
    """
    examples = _stream(source)
    start, stop = within or (0, examples.num_shards)
    for number in range(start, stop):
        file = examples.shard(num_shards=examples.num_shards, index=number)
        for row_number, row in enumerate(_read(source, file)):
            if text_field not in row:
                raise _no_field(source, text_field, list(row))
            yield _checked(
                row[text_field], source, text_field, f"example {row_number} of file {number}"
            )


def stream_count(source: str) -> int:
    """How many files a set has, each a part. Raises UserError as `hub_texts` does."""
    return _stream(source).num_shards


def stream_version(source: str) -> str:
    """The hash of the addresses of a set's files, which on the hub name their commit; of local ones
    that of what they hold. Raises UserError as `hub_texts` does, or OSError where one cannot be
    read.
    """
    split = _parsed(source)[2]
    files: dict[str, Sequence[str]] = _builder(source).config.data_files or {}
    if split not in files:
        raise UserError(
            f"data.source={source!r} has no files of its split {split!r}, by which its state could "
            "be told; name a set of files, or read it as a whole: hf:"
        )
    digest = hashlib.blake2b(digest_size=16)
    for file in files[split]:
        is_local = "://" not in file
        digest.update(storage.read_bytes(storage.path(file)) if is_local else file.encode())
    return f"{len(files[split])} files {digest.hexdigest()}"


def _stream(source: str) -> Any:
    """The set, of which nothing is read yet."""
    with _told(source):
        return _builder(source).as_streaming_dataset(split=_parsed(source)[2])


def _read(source: str, file: Any) -> Iterator[dict[str, Any]]:
    """The rows of a file, as it comes."""
    with _told(source):
        yield from file


@functools.lru_cache(maxsize=8)
def _builder(source: str) -> Any:
    """What the library reads a set with, file by file."""
    datasets = _library(source)
    name, config, _ = _parsed(source)
    with _told(source):
        return datasets.load_dataset_builder(name, config)


def _open(source: str, text_field: str) -> Any:
    examples = _load(source)
    if text_field not in examples.column_names:
        raise _no_field(source, text_field, examples.column_names)
    return examples.select_columns([text_field])


def _checked(text: Any, source: str, text_field: str, which: str) -> str:
    """A field of an example. Raises UserError where it is no text."""
    if not isinstance(text, str):
        raise UserError(
            f"data.source={source!r}: {text_field} of {which} is {type(text).__name__}, and must "
            "be a text; set data.text_field, or leave such examples out"
        )
    return text


def _no_field(source: str, text_field: str, names: Sequence[str]) -> UserError:
    return UserError(
        f"data.text_field={text_field!r} is not in {source!r}; fields: {listed(names)}"
    )


def _library(source: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"data.source={source!r} needs the package datasets: pip install 'matta_jax[hub]'"
        ) from None
    return datasets


def _parsed(source: str) -> tuple[str, str | None, str]:
    """The name, the configuration and the split of a source."""
    matched = _ADDRESS.fullmatch(source)
    if matched is None:
        kind = source.partition(":")[0]
        raise UserError(f"data.source={source!r} must be {kind}:NAME[@CONFIG][:SPLIT]")
    return matched["name"], matched["config"], matched["split"] or "train"


@functools.lru_cache(maxsize=8)
def _load(source: str) -> Any:
    datasets = _library(source)
    name, config, split = _parsed(source)
    with _told(source):
        folder = storage.path(name)
        # What `save_to_disk` wrote is no set that `load_dataset` takes.
        if any((folder / file).is_file() for file in ("state.json", "dataset_dict.json")):
            examples = datasets.load_from_disk(name)
            if isinstance(examples, dict):
                examples = examples[split]
            return examples
        return datasets.load_dataset(name, config, split=split)


@contextlib.contextmanager
def _told(source: str) -> Iterator[None]:
    """Turns the library's failures into a UserError."""
    try:
        yield
    except UserError:
        raise
    # The library raises many kinds, and what reads a set may raise any.
    except Exception as error:
        reason = shorten(" ".join(str(error).split()))
        raise UserError(
            f"data.source={source!r} cannot be read by the library datasets "
            f"({type(error).__name__}: {reason}); name a set, a configuration and a split that are "
            "there"
        ) from None
