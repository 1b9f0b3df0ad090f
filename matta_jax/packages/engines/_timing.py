"""Milliseconds of models in the engines that serve them, on the files that are written here."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from matta_jax import storage
from matta_jax.errors import UserError
from matta_jax.models import Architecture
from matta_jax.packages._formats import check_format, disk_bytes
from matta_jax.packages._package import Package, open_model
from matta_jax.packages._packaging import Packaging
from matta_jax.packages.engines._engine import Engine, installed_engine, run_child
from matta_jax.packages.engines._request import request_of
from matta_jax.packages.gguf import vocabulary_note

FIELD = "latency_engine"

# Rounds of a model, least and most, and seconds that are enough of them.
_ROUNDS = (9, 100)
_SECONDS = 1.0
# Of files whose models are in memory at once, to take turns.
_MOST_BYTES = 4e9


@dataclasses.dataclass(frozen=True)
class Timing:
    """A time that was measured several times.

    Attributes:
      ms: the median, in milliseconds.
      spread: half of what lies between the quartiles, as a share of the median.
      rounds: how many times.
    """

    ms: float
    spread: float
    rounds: int

    @classmethod
    def of(cls, milliseconds: Sequence[float] | np.ndarray) -> "Timing":
        """The timing of several measurements."""
        low, median, high = np.percentile(milliseconds, (25, 50, 75)).tolist()
        spread = (high - low) / 2 / median if median else 0.0
        return cls(median, spread, len(milliseconds))


def packaging_for(name: str, packaging: Packaging) -> Packaging:
    """How models are written for an engine that times them: as a user writes them where it reads
    that, else of the same numbers in a format that it does. Raises UserError where it is unknown or
    not installed.
    """
    engine = installed_engine(name, FIELD)
    if packaging.format in engine.formats:
        return dataclasses.replace(packaging, with_optimizer=False)
    return Packaging(engine.formats[0], packaging.dtype)


def check_timed(
    name: str, packaging: Packaging, architecture: Architecture, tokenizer: str
) -> None:
    """Raises UserError, before anything is written, for a model that an engine cannot run.

    Args:
      name: of the engine.
      packaging: from `packaging_for`.
      architecture: of the model.
      tokenizer: as `data.tokenizer`.
    """
    if architecture.table_path is None:
        raise UserError(
            f"{FIELD}={name!r} is for language models, and this model is of the family "
            f"{architecture.family_name!r}; give --latency_engine=jax"
        )
    check_format(packaging, architecture)
    if packaging.format == "gguf":
        note = vocabulary_note(tokenizer, architecture.vocab_size)
        if note is not None:
            raise UserError(f"{FIELD}={name!r}: {note} Its server is timed; give another engine")


def time_folders(
    name: str, folders: Sequence[storage.Path], *, mode: str, shape: tuple[int, int], threads: int
) -> tuple[str, list[Timing]]:
    """Times models in an engine, in a process by itself, where they take turns.

    Args:
      name: of the engine, which is installed.
      folders: of the models, in a format that it reads, on the local disk.
      mode: `prefill`: all ids of a sequence, and the logits of its last one; or `decode`: one
        token, with those before it cached. llama.cpp's is the mean of the last 16 up to the length.
      shape: sequences, of which llama.cpp's server takes one, and their ids.
      threads: of the engine.

    Returns:
      The engine's version; for each model its milliseconds.

    Raises:
      UserError: the engine does not run the files.
    """
    engine = installed_engine(name, FIELD)
    batch_size, length = shape
    request = {
        "task": "time",
        "mode": mode,
        "batch_size": batch_size,
        "length": length,
        "threads": threads,
        "rounds": _ROUNDS,
        "seconds": _SECONDS,
    }
    timings: list[Timing] = []
    version = ""
    for batch in _batches([open_model(folder) for folder in folders]):
        about, rounds = _time_batch(engine, batch, request)
        version = str(about["version"])
        timings += [Timing.of(milliseconds) for milliseconds in rounds]
    return version, timings


def _time_batch(
    engine: Engine, packages: Sequence[Package], request: dict[str, Any]
) -> tuple[dict[str, Any], np.ndarray]:
    """What an engine says, and milliseconds [models, rounds]."""
    models = [request_of(engine, package, FIELD) for package in packages]
    about, rounds = run_child(engine, request | {"models": models}, FIELD)
    if not (np.isfinite(rounds).all() and (rounds >= 0).all()):
        raise UserError(
            f"{FIELD}={engine.name!r}: {engine.name} tells times that are no numbers; time again, "
            "or name another engine"
        )
    return about, rounds


def _batches(packages: Sequence[Package]) -> Iterator[Sequence[Package]]:
    """Yields the models in parts of about equal size that lie in memory at once."""
    sizes = [disk_bytes(package.path, package.manifest["format"]) for package in packages]
    num_batches = max(1, math.ceil(sum(sizes) / _MOST_BYTES))
    count = math.ceil(len(packages) / num_batches)
    for start in range(0, len(packages), count):
        yield packages[start : start + count]
