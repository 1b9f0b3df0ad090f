"""Corpora that `matta-prepare` has tokenised: what their manifest says, and their windows."""

import concurrent.futures
import dataclasses
from typing import Any

import numpy as np

from matta_jax import storage
from matta_jax.config import DataConfig
from matta_jax.data._encoding import Tally
from matta_jax.data._seal import seal_of
from matta_jax.data._shards import Shard, ShardTokens
from matta_jax.data._tokens import JoinedTokens
from matta_jax.data._windows import Windows
from matta_jax.errors import UserError
from matta_jax.tokenizers import Tokenizer

KIND = "prepared"
"""Of the source `prepared:FOLDER`."""
MANIFEST = "manifest.json"
"""Written last: without it a folder is not prepared."""
FORMAT = 1
_DOWNLOADS = 8
"""Files of a bucket that are copied at once."""


@dataclasses.dataclass(frozen=True)
class PreparedSide:
    """The training or the held-out side.

    Attributes:
      tally: of its documents.
      fingerprint: hash of its token stream, that of the same text tokenised in a run.
      shards: its files, in order.
    """

    tally: Tally
    fingerprint: str
    shards: tuple[Shard, ...]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says; nothing in it depends on where the folder lies.

    Attributes:
      tokenizer: its fingerprint.
      tokenizer_name: as the config named it.
      dtype: of tokens.
      separator: ids between documents, which both streams begin with.
      source, eval_source, text_field: of the config.
      eval_fraction: likewise; None where `eval_source` was held out.
      corpus: hash of all documents.
      near_duplicates: held-out documents that stand in the training side too, as `near_duplicates`
        finds them.
      train, held_out: the sides.
      format: of the folder.
    """

    tokenizer: str
    tokenizer_name: str
    dtype: str
    separator: tuple[int, ...]
    source: str
    eval_source: str | None
    text_field: str
    eval_fraction: float | None
    corpus: str
    near_duplicates: int
    train: PreparedSide
    held_out: PreparedSide
    format: int = FORMAT

    def write(self, folder: storage.Path) -> None:
        """Writes it, which ends a preparation."""
        content = dataclasses.asdict(self)
        content["seal"] = seal_of(content)
        storage.replace_text(folder / MANIFEST, storage.json_text(content, indent=2) + "\n")

    @classmethod
    def read(cls, folder: storage.Path) -> "Manifest":
        """Reads it. Raises UserError where there is none, or another thing."""
        file = folder / MANIFEST
        try:
            content = storage.read_json(file)
            if content["format"] != FORMAT or content.pop("seal") != seal_of(content):
                raise ValueError("it is not what was written")
            for name in ("train", "held_out"):
                content[name] = _side_of(content[name])
            return cls(**content | {"separator": tuple(content["separator"])})
        except FileNotFoundError:
            raise UserError(
                f"{str(folder)!r} has no {MANIFEST}: it is no prepared corpus, or not a whole one; "
                "name another, or let matta-prepare go on with it"
            ) from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{file} cannot be read ({error}); copy the folder again, or prepare it again"
            ) from None


def _side_of(content: dict[str, Any]) -> PreparedSide:
    shards = tuple(Shard(**shard) for shard in content["shards"])
    return PreparedSide(Tally(**content["tally"]), content["fingerprint"], shards)


def prepared_windows(
    source: str, config: DataConfig, tokenizer: Tokenizer, *, held_out: bool
) -> Windows:
    """Returns the windows of one side of a prepared corpus, read where they lie; of a bucket, from
    the user's cache, where each file is copied once.

    Args:
      source: `prepared:FOLDER`.
      config: of the run.
      tokenizer: of the run.
      held_out: which side.

    Raises:
      UserError: the folder is no prepared corpus, or was prepared for another config.
    """
    folder = storage.path(source.partition(":")[2])
    manifest = Manifest.read(folder)
    _check_fits(manifest, source, config, tokenizer)
    side = manifest.held_out if held_out else manifest.train
    _stage(folder, side)

    dtype = np.dtype(manifest.dtype)

    def tokens_of(shard: Shard) -> ShardTokens:
        return ShardTokens(shard, lambda: storage.local_copy(folder / shard.file), dtype)

    lead = np.array(manifest.separator, dtype)
    return Windows(
        JoinedTokens([lead, *map(tokens_of, side.shards)]),
        config.seq_len,
        tokenizer.eos_id,
        side.tally.num_bytes,
        side.tally.num_documents,
        fingerprint=side.fingerprint,
        num_lossy=side.tally.num_lossy,
        start_id=tokenizer.start_id,
        near_duplicates=manifest.near_duplicates if held_out else None,
    )


def _check_fits(manifest: Manifest, source: str, config: DataConfig, tokenizer: Tokenizer) -> None:
    if manifest.tokenizer != tokenizer.fingerprint:
        raise UserError(
            f"data.tokenizer={config.tokenizer!r} is not what {source!r} was tokenised with, which "
            f"was {manifest.tokenizer_name!r}; set that, or prepare the corpus again"
        )
    is_split = config.eval_source is None and manifest.eval_fraction is not None
    if is_split and config.eval_fraction != manifest.eval_fraction:
        raise UserError(
            f"data.eval_fraction={config.eval_fraction} is not the {manifest.eval_fraction} at "
            f"which {source!r} was split; set that, or prepare the corpus again"
        )


def _stage(folder: storage.Path, side: PreparedSide) -> None:
    """Checks that all files of a side are there, and copies those of a bucket, several at once."""

    def check(shard: Shard) -> None:
        try:
            storage.num_bytes(storage.local_copy(folder / shard.file))
        except OSError as error:
            raise UserError(
                f"{folder / shard.file} of a prepared corpus cannot be read ({error}); copy the "
                "folder again, or prepare it again"
            ) from None

    with concurrent.futures.ThreadPoolExecutor(_DOWNLOADS) as pool:
        for _ in pool.map(check, side.shards):
            pass
