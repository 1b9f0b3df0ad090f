"""Sets of texts that the library `datasets` of Hugging Face reads: of the hub, or of a folder."""

import functools
import hashlib
import re
from collections.abc import Iterator
from typing import Any

from matta_jax import storage
from matta_jax.errors import UserError, listed, shorten

_ADDRESS = re.compile(r"hf:(?P<name>[^@]+?)(@(?P<config>[^:]+))?(:(?P<split>[\w.]+))?")
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
            if not isinstance(text, str):
                raise UserError(
                    f"data.source={source!r}: {text_field} of example {number} is "
                    f"{type(text).__name__}, and must be a text; set data.text_field, or leave "
                    "such examples out"
                )
            yield text
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


def _open(source: str, text_field: str) -> Any:
    examples = _load(source)
    if text_field not in examples.column_names:
        raise UserError(
            f"data.text_field={text_field!r} is not in {source!r}; fields: "
            f"{listed(examples.column_names)}"
        )
    return examples.select_columns([text_field])


@functools.lru_cache(maxsize=8)
def _load(source: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"data.source={source!r} needs the package datasets: pip install 'matta_jax[hub]'"
        ) from None
    matched = _ADDRESS.fullmatch(source)
    if matched is None:
        raise UserError(f"data.source={source!r} must be hf:NAME[@CONFIG][:SPLIT]")
    name, config, split = matched["name"], matched["config"], matched["split"] or "train"
    try:
        folder = storage.path(name)
        # What `save_to_disk` wrote is no set that `load_dataset` takes.
        if any((folder / file).is_file() for file in ("state.json", "dataset_dict.json")):
            examples = datasets.load_from_disk(name)
            if isinstance(examples, dict):
                examples = examples[split]
            return examples
        return datasets.load_dataset(name, config, split=split)
    # The library raises many kinds, and what reads a set may raise any.
    except Exception as error:
        reason = shorten(" ".join(str(error).split()))
        raise UserError(
            f"data.source={source!r} cannot be read by the library datasets "
            f"({type(error).__name__}: {reason}); name a set, a configuration and a split that are "
            "there"
        ) from None
