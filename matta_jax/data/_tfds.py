"""Prepared sets of TensorFlow Datasets, read without TensorFlow."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from matta_jax import storage
from matta_jax.errors import UserError, shorten


def tfds_version(source: str, text_field: str, tfds_dir: str | None) -> str:
    """Returns what changes when a set is prepared anew: its full name, what it says of itself, and
    name, size and time of each file. Raises UserError as `tfds_texts` does.
    """
    builder, _ = _open(source, text_field, tfds_dir)
    parts = [builder.info.full_name]
    for path in storage.match(storage.path(str(builder.data_path)), "*"):
        if path.suffix == ".json":
            parts.append(f"{path.name} {hashlib.blake2b(storage.read_bytes(path)).hexdigest()}")
        # Reading all of a set would take too long.
        else:
            stat = path.stat()
            parts.append(f"{path.name} {stat.st_size} {stat.st_mtime_ns}")
    return "\n".join(parts)


def tfds_count(source: str, text_field: str, tfds_dir: str | None) -> int:
    """How many examples a set has. Raises UserError as `tfds_texts` does."""
    builder, split = _open(source, text_field, tfds_dir)
    return len(builder.as_data_source(split=split))


def tfds_texts(
    source: str, text_field: str, tfds_dir: str | None, within: tuple[int, int] | None = None
) -> Iterator[bytes]:
    """Yields the UTF-8 text of each example.

    Args:
      source: `tfds:NAME[:SPLIT]`; the split is `train` by default.
      text_field: feature that holds the text.
      tfds_dir: where prepared sets lie; None for the place that TFDS has for them.
      within: start and stop of the examples to read; None: all.

    Raises:
      UserError: the set is unknown, not prepared as ArrayRecord, or without this split or field.
    """
    builder, split = _open(source, text_field, tfds_dir)
    examples = builder.as_data_source(split=split)
    for number in range(*(within or (0, len(examples)))):
        value = examples[number][text_field]
        yield value if isinstance(value, bytes) else str(value).encode()


def tfds_images(source: str, tfds_dir: str | None) -> Iterator[tuple[np.ndarray, int]]:
    """Yields the pixels [H, W, C] and the class of each example, of the features `image` and
    `label`, decoded by OpenCV or Pillow. Raises UserError as `tfds_texts` does, and where neither
    is installed.
    """
    builder, split = _open(source, "image", tfds_dir, "the feature")
    _open(source, "label", tfds_dir, "the feature")
    try:
        for example in builder.as_data_source(split=split):
            yield np.asarray(example["image"]), int(example["label"])
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"data.source={source!r}: its images cannot be decoded ({shorten(str(error))}); pip "
            "install 'matta_jax[vision]'"
        ) from None


def _open(
    source: str, feature: str, tfds_dir: str | None, setting: str = "data.text_field"
) -> tuple[Any, str]:
    """Returns the builder of a set that is prepared, and the name of its split.

    Args:
      source: `tfds:NAME[:SPLIT]`.
      feature: that it must have.
      tfds_dir: where prepared sets lie.
      setting: what names the feature, as errors say it.
    """
    name, _, split = source.partition(":")[2].partition(":")
    split = split or "train"
    builder = _builder(source, name, tfds_dir)
    _check_prepared(source, builder)

    if split not in builder.info.splits:
        splits = ", ".join(builder.info.splits)
        raise UserError(f"data.source={source!r} has no split {split!r}; splits: {splits}")
    if feature not in builder.info.features:
        fields = ", ".join(builder.info.features)
        raise UserError(f"{setting}={feature!r} is not in {source!r}; fields: {fields}")
    return builder, split


def _builder(source: str, name: str, tfds_dir: str | None) -> Any:
    # TFDS takes long to import, and is an extra.
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder

    from matta_jax.data import tfds_text  # noqa: F401  Registers the local text builder.

    where = {} if tfds_dir is None else {"data_dir": tfds_dir}
    try:
        # A prepared set needs no code, which for many stock sets would import TensorFlow.
        try:
            return read_only_builder.builder_from_files(name, **where)
        except tfds.core.DatasetNotFoundError:
            return tfds.builder(name, file_format="array_record", **where)
    except ImportError as error:
        raise UserError(
            f"data.tfds_dir={tfds_dir!r}: {shorten(str(error))}; install it, or name a local folder"
        ) from None
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"data.source={source!r}: TFDS does not know it, and no prepared set of this name is "
            f"at hand ({reason}); name it with its configuration, such as tfds:c4/en, and see "
            "data.tfds_dir"
        ) from None


def _check_prepared(source: str, builder: Any) -> None:
    if not builder.data_path.exists():
        raise UserError(
            f"data.source={source!r} is not prepared in {builder.data_path}; "
            "prepare it with file_format='array_record', or set data.tfds_dir"
        )

    file_format = builder.info.file_format
    if file_format is not None and file_format.value != "array_record":
        raise UserError(
            f"data.source={source!r} is prepared as {file_format.value}, "
            "which TensorFlow alone reads; prepare it with file_format='array_record'"
        )
